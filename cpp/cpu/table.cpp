#include "cpu/table.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>

#include "cpu/detect.h"
#include "device.h"

namespace genkit {
namespace {

struct Tier {
    const char* name;
    void (*install)(Kernels&);
    bool available;
};

std::vector<Tier> built_tiers() {
    [[maybe_unused]] CpuFeatures cpu = detect_cpu();
    std::vector<Tier> tiers = {{"reference", install_reference, true}};
#ifdef GENKIT_TIER_avx2
    tiers.push_back({"avx2", install_avx2, cpu.avx2});
#endif
#ifdef GENKIT_TIER_avx512
    tiers.push_back({"avx512", install_avx512, cpu.avx512});
#endif
#ifdef GENKIT_TIER_avx512vnni
    tiers.push_back({"avx512vnni", install_avx512vnni, cpu.avx512vnni});
#endif
#ifdef GENKIT_TIER_avx512bf16
    tiers.push_back({"avx512bf16", install_avx512bf16, cpu.avx512bf16});
#endif
#ifdef GENKIT_TIER_amx
    tiers.push_back({"amx", install_amx, cpu.amx});
#endif
#ifdef GENKIT_TIER_neon
    tiers.push_back({"neon", install_neon, cpu.neon});
#endif
#ifdef GENKIT_TIER_neon_dotprod
    tiers.push_back({"neon_dotprod", install_neon_dotprod, cpu.neon_dotprod});
#endif
    return tiers;
}

constexpr const char* slot_names[] = {
    "convert", "embedding", "rms_norm", "layer_norm", "round_rows", "tile_rows", "linear", "quantize", "packed_linear",
    "quantize_weight", "pack", "unpack", "route", "group_rows", "gather_rows", "combine", "rope_table", "rope", "kv_write",
    "rope_kv_write", "attention", "attention_merge", "activation", "gated", "add", "scale", "gather_columns", "softmax",
    "argmax", "nonfinite", "top_k", "bias", "penalty", "sample", "remember", "copy_pages", "measure_read", "measure_f32",
    "measure_bf16", "measure_int8"};
constexpr size_t slot_count = sizeof(slot_names) / sizeof(slot_names[0]);
static_assert(offsetof(Kernels, row_input) == slot_count * sizeof(void (*)()), "slot_names must list the slots in order");

// Not asked of a device: weights are rounded and packed on the processor, while they are read from their file.
constexpr const char* processor_only[] = {"quantize_weight", "pack"};

template <size_t i>
void missing() {
    throw std::runtime_error(std::string("cuda has no kernel '") + slot_names[i] + "'");
}

template <size_t... i>
std::vector<void (*)()> missing_ones(std::index_sequence<i...>) {
    return {missing<i>...};
}

struct Table {
    Kernels kernels{};
    std::string tier;
    const char* served_by[slot_count] = {};
    std::string error;
};

using Pointers = void (*[slot_count])();

void build(Table& table, const std::string& last) {
    for (const Tier& tier : built_tiers()) {
        if (!tier.available) continue;
        Pointers before, after;
        std::memcpy(before, &table.kernels, sizeof(before));
        tier.install(table.kernels);
        std::memcpy(after, &table.kernels, sizeof(after));
        for (size_t i = 0; i < slot_count; i++)
            if (after[i] != before[i]) table.served_by[i] = tier.name;
        table.tier = tier.name;
        if (last == tier.name) return;
    }
}

Table first_table() {
    Table table;
    const char* cap = std::getenv("GENKIT_ISA");
    if (cap == nullptr || *cap == '\0') {
        build(table, "");
        return table;
    }
    std::string choices;
    for (const Tier& tier : built_tiers()) {
        if (!tier.available) continue;
        if (std::strcmp(tier.name, cap) == 0) {
            build(table, cap);
            return table;
        }
        choices += std::string(choices.empty() ? "" : ", ") + tier.name;
    }
    table.error = "GENKIT_ISA=" + std::string(cap) + " is not a tier this machine can run; it can run: " + choices;
    build(table, "reference");
    return table;
}

Table& table() {
    static Table t = first_table();
    return t;
}

}  // namespace

const Kernels& kernels() { return device_in_use() == Device::cpu ? table().kernels : device_kernels(); }

std::vector<std::string> available_tiers() {
    std::vector<std::string> names;
    for (const Tier& tier : built_tiers())
        if (tier.available) names.emplace_back(tier.name);
    return names;
}

void use_tier(const std::string& name) {
    std::string choices;
    for (const std::string& known : available_tiers()) {
        if (known == name) {
            Table fresh;
            build(fresh, name);
            table() = fresh;
            return;
        }
        choices += (choices.empty() ? "" : ", ") + known;
    }
    throw std::invalid_argument("tier '" + name + "' is not one this machine can run; it can run: " + choices);
}

std::string current_tier() { return table().tier; }

std::vector<std::pair<std::string, std::string>> slot_tiers() {
    std::vector<std::pair<std::string, std::string>> slots;
    for (size_t i = 0; i < slot_count; i++) slots.emplace_back(slot_names[i], table().served_by[i]);
    return slots;
}

std::vector<std::string> fill_missing(Kernels& kernels) {
    const std::vector<void (*)()> stand_ins = missing_ones(std::make_index_sequence<slot_count>());
    std::vector<std::string> names;
    Pointers slots;
    std::memcpy(slots, &kernels, sizeof(slots));
    for (size_t i = 0; i < slot_count; i++) {
        if (slots[i] != nullptr) continue;
        slots[i] = stand_ins[i];
        const std::string name = slot_names[i];
        if (std::find(std::begin(processor_only), std::end(processor_only), name) == std::end(processor_only)) names.push_back(name);
    }
    std::memcpy(static_cast<void*>(&kernels), slots, sizeof(slots));
    return names;
}

std::string isa_error() { return table().error; }

}  // namespace genkit
