// The kernel table: tiers in order, plain first; each overwrites the slots it improves. Built once, when the core is
// imported; GENKIT_ISA=<tier> caps it.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace genkit {

// Every tier's only exported symbol. Each is compiled with its own instruction-set flags.
void install_reference(Kernels& k);
void install_avx2(Kernels& k);
void install_avx512(Kernels& k);
void install_avx512vnni(Kernels& k);
void install_avx512bf16(Kernels& k);
void install_amx(Kernels& k);
void install_neon(Kernels& k);
void install_neon_dotprod(Kernels& k);

const Kernels& kernels();  // of the device in use
std::vector<std::string> available_tiers();                       // what this processor can run, plain first
void use_tier(const std::string& name);                           // throws std::invalid_argument listing the choices
std::string current_tier();
std::vector<std::pair<std::string, std::string>> slot_tiers();    // slot -> tier that serves it
std::vector<std::string> fill_missing(Kernels& kernels);           // empty slots throw, by name -> those a device is asked for
std::string isa_error();  // why GENKIT_ISA could not be obeyed (the table is then the plain one), or ""

}  // namespace genkit
