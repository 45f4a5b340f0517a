// All kernels as one library, compiled together: most of the compiler's time goes into XLA's header, which they share.
#include "digest.cc"
#include "step.cc"
