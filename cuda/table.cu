// The CUDA plugin's face. It is opened by absolute path on first use (never at import), and asked for its version.
// It has no kernels yet: every slot is empty, and `--device cuda` says so instead of falling back.
#include "plugin.h"

extern "C" __attribute__((visibility("default"))) int genkit_cuda_abi() { return GENKIT_PLUGIN_ABI; }
