// All kernels as one library, compiled together: most of the compiler's time goes into XLA's header, which they share.
#include "digest.cc"
#include "direction.cc"
#include "moments.cc"
#include "newton_schulz.cc"
#include "step.cc"
