// Where tensors live and kernels run: the processor, or a GPU through its plugin.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "plugin.h"

namespace genkit {

enum class Device : int32_t { cpu, cuda };
const char* device_name(Device device);

// The device that this thread's ops run on and new tensors lie on. Throws std::invalid_argument for one that is not open.
Device device_in_use();
void use_device(Device device);

// Puts a device in use on this thread until the scope ends.
class DeviceScope {
public:
    explicit DeviceScope(Device device) : before_(device_in_use()) { use_device(device); }
    ~DeviceScope() { use_device(before_); }
    DeviceScope(const DeviceScope&) = delete;

private:
    Device before_;
};

// Opens the plugin at `path`, once for the process: the driver's library first, then the plugin, then the device. Returns
// why it cannot be used, or "".
std::string open_device(const std::string& path);
// The driver alone: the version of CUDA it is for, "" where unknown, and why it cannot be used, or "". Asked anew each time.
struct DriverState {
    std::string version, trouble;
};
DriverState driver_state();
const DevicePlugin& device_plugin();  // throws std::runtime_error where none is open
const Kernels& device_kernels();
std::string device_driver();                 // the version of CUDA it is for
std::vector<std::string> device_missing();  // slots it has no kernel for

// Throws std::runtime_error, naming what failed, where an error is not null.
void check_device(const char* what, const char* error);

std::shared_ptr<char> allocate_on_device(size_t bytes, bool zero);  // throws std::bad_alloc

}  // namespace genkit
