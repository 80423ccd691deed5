// What the core and a device plugin must agree on before either calls the other.
#pragma once

// Raised with every change of kernels.h or of the plugin's functions; a plugin of another version is not used.
#define GENKIT_PLUGIN_ABI 1
