// Errors that GENKIT_STAND_IN_PLANTED puts into kernels of cuda_plugin.cpp, which checks of a device must find.

Kernels genuine;
float flicker = 1.0f;

// softmax: the last row is not written. scale: a factor that is a little off. flicker: not the same twice.
void install_planted(Kernels& k, const std::string& planted) {
    genuine = k;
    if (planted == "softmax") k.softmax = [](const SoftmaxArgs& a, int64_t begin, int64_t end) { genuine.softmax(a, begin, end - 1); };
    if (planted == "scale") k.scale = [](const ScaleArgs& a, int64_t begin, int64_t end) {
        ScaleArgs wrong = a;
        wrong.factor *= 1.001f;
        genuine.scale(wrong, begin, end);
    };
    if (planted == "flicker") k.scale = [](const ScaleArgs& a, int64_t begin, int64_t end) {
        ScaleArgs wrong = a;
        wrong.factor *= flicker;
        flicker += 0x1p-22f;
        genuine.scale(wrong, begin, end);
    };
}
