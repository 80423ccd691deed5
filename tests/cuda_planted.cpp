// The plugin of cuda_plugin.cpp with errors in it, which checks of a device must find: PLANTED is 1, 2 or 3.
#define genkit_device_plugin genuine_device_plugin
#include "cuda_plugin.cpp"
#undef genkit_device_plugin

namespace genkit {
namespace {

Kernels genuine;
float flicker = 1.0f;

void install_planted(Kernels& k) {
    plugin.install(k);
    genuine = k;
#if PLANTED == 1  // the last row is not written
    k.softmax = [](const SoftmaxArgs& a, int64_t begin, int64_t end) { genuine.softmax(a, begin, end - 1); };
#elif PLANTED == 2  // a factor that is a little off
    k.scale = [](const ScaleArgs& a, int64_t begin, int64_t end) {
        ScaleArgs wrong = a;
        wrong.factor *= 1.001f;
        genuine.scale(wrong, begin, end);
    };
#else  // not the same twice
    k.scale = [](const ScaleArgs& a, int64_t begin, int64_t end) {
        ScaleArgs wrong = a;
        wrong.factor *= flicker;
        flicker += 0x1p-22f;
        genuine.scale(wrong, begin, end);
    };
#endif
}

DevicePlugin planted;

}  // namespace
}  // namespace genkit

extern "C" __attribute__((visibility("default"))) const genkit::DevicePlugin* genkit_device_plugin() {
    genkit::planted = genkit::plugin;
    genkit::planted.install = genkit::install_planted;
    return &genkit::planted;
}
