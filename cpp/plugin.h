// What the core and a device plugin agree on: the plugin hands out these functions. Errors are words that stay good until
// the next call, or null.
#pragma once
#include <cstddef>
#include <cstdint>

// Raised with every change of kernels.h, loop.h or of this file; a plugin of another version is not used.
#define GENKIT_PLUGIN_ABI 8

namespace genkit {

struct Kernels;
struct AdvanceArgs;

struct DeviceFacts {
    char name[128];
    int32_t major, minor;      // compute capability
    int32_t processors;        // multiprocessors
    int64_t memory, available; // bytes
};

struct DevicePlugin {
    int32_t abi;
    const char* targets;  // what it was compiled for, in words
    const char* (*open)(DeviceFacts* facts);  // once, before all others
    const char* (*facts)(DeviceFacts* facts);
    // As a tier's install_*: each slot starts its kernel for units [begin, end), on pointers of the device. What goes wrong
    // is told by the next check().
    void (*install)(Kernels& kernels);
    void* (*allocate)(size_t bytes);  // null: no memory. Aligned to 256 bytes
    void (*release)(void* memory);    // after the kernels started so far
    const char* (*upload)(void* to, const void* from, size_t bytes);    // from may change as soon as it returns
    const char* (*download)(void* to, const void* from, size_t bytes);  // after the kernels started so far
    const char* (*clear)(void* memory, size_t bytes);
    const char* (*check)();  // whether all kernels could be started
    // A list of kernels as one thing: what is started between begin and end is noted and not run. end gives a graph, or null
    // with the reason in *error.
    const char* (*graph_begin)();
    void* (*graph_end)(const char** error);
    const char* (*graph_run)(void* graph);
    void (*graph_release)(void* graph);
    // The token loop, loop.h. share gives zeroed memory of the host that kernels reach as well, or null.
    void* (*share)(size_t bytes);
    void (*unshare)(void* memory);  // after the kernels started so far
    void (*advance)(const AdvanceArgs& args);
    const char* (*progress)(bool* idle);  // whether all that was started has ended; waits for nothing
};

}  // namespace genkit

// The plugin's one symbol: extern "C" const genkit::DevicePlugin* genkit_device_plugin();
