"""What things cost, measured: each benchmark returns flat records, ready to be JSON lines.

Nothing is imported here, so that who asks for one benchmark does not wait for what the others need.
"""
