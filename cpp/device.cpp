#include "device.h"

#include <dlfcn.h>

#include <mutex>
#include <new>
#include <stdexcept>

#include "cpu/table.h"
#include "kernels.h"

namespace genkit {
namespace {

constexpr int least_driver = 13000;  // of CUDA 13, which the plugin is built with

thread_local Device in_use = Device::cpu;
const DevicePlugin* plugin = nullptr;
Kernels plugin_kernels{};
std::vector<std::string> without_kernel;
std::string driver;  // the CUDA it is for

template <class F>
F symbol(void* library, const char* name) {
    return reinterpret_cast<F>(dlsym(library, name));
}

std::string cuda_words(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// The driver, asked for what the plugin would fail at with less to say. number: of the CUDA it is for, 1000 major + 10 minor.
std::string driver_trouble(int& number) {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return "no NVIDIA driver (libcuda.so.1 not found)";
    auto init = symbol<int (*)(unsigned)>(library, "cuInit");
    auto version = symbol<int (*)(int*)>(library, "cuDriverGetVersion");
    auto count = symbol<int (*)(int*)>(library, "cuDeviceGetCount");
    if (!init || !version || !count) return "libcuda.so.1 lacks functions of a CUDA driver";
    if (int status = version(&number)) return "the NVIDIA driver gives error " + std::to_string(status) + " when asked for its version";
    if (number < least_driver)
        return "the NVIDIA driver is for CUDA " + cuda_words(number) + "; " + cuda_words(least_driver) + " is needed (driver 580 or newer)";
    if (int status = init(0))
        return "the NVIDIA driver gives error " + std::to_string(status) + " (is a device present and allowed?)";
    int devices = 0;
    if (int status = count(&devices)) return "the NVIDIA driver gives error " + std::to_string(status) + " when asked for devices";
    return devices > 0 ? "" : "the NVIDIA driver sees no device";
}

std::string open_plugin(const std::string& path) {
    const DriverState state = driver_state();
    if (!state.trouble.empty()) return state.trouble;
    driver = state.version;
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return std::string("the plugin cannot be opened: ") + dlerror();
    auto get = symbol<const DevicePlugin* (*)()>(library, "genkit_device_plugin");
    const DevicePlugin* found = get ? get() : nullptr;
    if (found == nullptr || found->abi != GENKIT_PLUGIN_ABI)
        return path + " is of another build (interface " + std::to_string(found ? found->abi : 0) + ", expected " +
               std::to_string(GENKIT_PLUGIN_ABI) + ")";
    DeviceFacts facts;
    if (const char* error = found->open(&facts)) return std::string("the device cannot be used: ") + error;
    found->install(plugin_kernels);
    without_kernel = fill_missing(plugin_kernels);
    plugin = found;
    return "";
}

}  // namespace

const char* device_name(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

Device device_in_use() { return in_use; }

void use_device(Device device) {
    if (device == Device::cuda && plugin == nullptr) throw std::invalid_argument("[use_device] cuda has not been opened");
    in_use = device;
}

DriverState driver_state() {
    int number = 0;
    std::string trouble = driver_trouble(number);
    return {number > 0 ? cuda_words(number) : "", trouble};
}

std::string open_device(const std::string& path) {
    static std::mutex mutex;
    static bool tried = false;
    static std::string trouble;
    std::lock_guard<std::mutex> lock(mutex);
    if (!tried) trouble = open_plugin(path);
    tried = true;
    return trouble;
}

const DevicePlugin& device_plugin() {
    if (plugin == nullptr) throw std::runtime_error("no device has been opened");
    return *plugin;
}

const Kernels& device_kernels() { return plugin_kernels; }
std::string device_driver() { return driver; }
std::vector<std::string> device_missing() { return without_kernel; }

void check_device(const char* what, const char* error) {
    if (error != nullptr) throw std::runtime_error(std::string("cuda: ") + what + ": " + error);
}

std::shared_ptr<char> allocate_on_device(size_t bytes, bool zero) {
    const DevicePlugin& p = device_plugin();
    auto* memory = static_cast<char*>(p.allocate(bytes > 0 ? bytes : 1));
    if (memory == nullptr) throw std::bad_alloc();
    std::shared_ptr<char> owned(memory, [&p](char* m) { p.release(m); });
    if (zero) check_device("clearing memory", p.clear(memory, bytes));
    return owned;
}

}  // namespace genkit
