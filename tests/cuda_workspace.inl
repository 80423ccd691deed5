// The workspace of a check's kernels, included after them: counters of zeros, scratch full of a byte that makes no zero.
Workspace filled_workspace(int64_t processors, unsigned char byte) {
    static std::vector<uint32_t> counters(workspace_counters, 0);
    static std::vector<char> scratch(workspace_bytes + 256, char(byte));
    return {counters.data(), reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch.data()) + 255) / 256 * 256), processors};
}
