// A part of kernel_check.cpp: what the device can do at most.

void check_measures() {
    std::vector<uint8_t> memory(4 * 4099 + 64);
    for (uint8_t& byte : memory) byte = uint8_t(rng.below(256));
    for (int64_t bytes : {1, 7, 8, 9, 63, 64, 100, 255, 256, 257, 511, 512, 1000, 1023, 1024, 4099}) {
        for (int64_t ahead : {0, 64, 1024}) {
            uint64_t want[3], got[3];
            for (int64_t unit = 0; unit < 3; unit++) {
                want[unit] = 0;
                for (int64_t i = 0; i < bytes; i++) want[unit] ^= uint64_t{memory[size_t(1 + unit * bytes + i)]} << i % 8 * 8;
            }
            for (const Kernels* k : {&plain, &fast}) {
                k->measure_read({memory.data() + 1, got, bytes, 5, ahead}, 0, 1);
                k->measure_read({memory.data() + 1, got, bytes, 5, ahead}, 1, 3);
                k->measure_read({memory.data() + 1, nullptr, bytes, 2, ahead}, 0, 3);  // under sanitizers: nothing beyond
                if (memcmp(got, want, sizeof want) == 0) continue;
                printf("measure_read of %lld bytes is not what they hold\n", static_cast<long long>(bytes)), failures++;
            }
        }
    }
    std::vector<float> data(256), results(3), again(3);
    std::vector<double> operations(3);
    for (int64_t i = 0; i < 256; i++) data[size_t(i)] = from_bits(uint32_t(0x3f00 + i % 128) * 0x10001u);
    for (auto* kernel : {fast.measure_f32, fast.measure_bf16, fast.measure_int8}) {
        kernel({data.data(), results.data(), operations.data()}, 0, 3);
        kernel({data.data(), again.data(), operations.data()}, 1, 3);
        for (size_t i = 0; i < 3; i++) {
            if (operations[i] > 1e4 && results[i] == results[0] && results[i] - results[i] == 0 && (i == 0 || again[i] == results[i])) continue;
            printf("an arithmetic loop's unit %zu: %g of %g operations\n", i, double(results[i]), operations[i]), failures++;
        }
    }
}
