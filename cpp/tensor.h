// Dense arrays: dtype, shape, device, storage. No maths.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "kernels.h"

namespace genkit {

int64_t dtype_size(DType dtype);          // bytes of one element
const char* dtype_name(DType dtype);      // "f32"
DType dtype_from_name(const std::string& name);  // throws std::invalid_argument listing the known names

class Tensor;

// Memory for tensors that ops make while it is in use: the intermediates of a plan, for as long as it is replayed, or of
// steps that follow one another. A storage that is given up serves later tensors: what was recorded before no longer reads
// it, and replays keep that order. With `keeps`, for a plan, storages from elsewhere whose addresses were taken are kept
// alive. A tensor that outlives arena and plan keeps its memory.
class Arena : public std::enable_shared_from_this<Arena> {
public:
    explicit Arena(bool keeps = false);
    ~Arena();
    std::shared_ptr<char> take(size_t bytes);
    void share(const Arena& other);      // other's memory is free here: who uses the one must be done before who uses the other
    void keep(const Tensor& t);
    void send_inputs() const;            // of a device: what the host has written into tensors that are kept
    bool owns(const Tensor& t) const;
    void close();                       // nothing is used again
    std::vector<Tensor> blocks() const;  // u8 [bytes] each, all memory there is

    // Puts an arena in use on this thread, or (null) takes it out of use, until the scope ends.
    class Scope {
    public:
        explicit Scope(Arena* arena);
        ~Scope();
        Scope(const Scope&) = delete;

    private:
        Arena* before_;
    };

private:
    struct Block {
        std::shared_ptr<char> memory;
        size_t bytes;
        bool free;
    };
    void give_back(size_t block);
    mutable std::mutex mutex_;  // a tensor may die on any thread
    const bool keeps_;
    bool open_ = true;
    std::vector<Block> blocks_;
    std::vector<std::shared_ptr<char>> kept_;
    std::vector<Tensor> inputs_;
};

// Storage is shared by views. Rows may be strided (a view of some columns); elements of a row are contiguous.
class Tensor {
public:
    // Uninitialized, or zeros that the system commits page by page on first write. Uninitialized ones come from the
    // arena in use, on the device in use. Throws std::bad_alloc, and std::invalid_argument for negative sizes and products that overflow.
    Tensor(std::vector<int64_t> shape, DType dtype, bool zero = false);

    // A copy on another device; the same tensor where it is there already. Small whole numbers are remembered on the host as
    // well, see `host`.
    Tensor to(Device device) const;

    Device device() const { return device_; }
    DType dtype() const { return dtype_; }
    const std::vector<int64_t>& shape() const { return shape_; }
    int64_t rank() const { return static_cast<int64_t>(shape_.size()); }
    int64_t dim(int64_t axis) const { return shape_[static_cast<size_t>(axis)]; }
    int64_t count() const;                      // elements
    int64_t nbytes() const { return count() * dtype_size(dtype_); }
    int64_t row_stride() const { return row_stride_; }  // elements between rows of the first axis
    bool contiguous() const;

    Tensor rows(int64_t begin, int64_t end) const;      // view of [begin, end) of the first axis
    Tensor columns(int64_t begin, int64_t end) const;   // view of columns of a 2-D tensor
    Tensor reshape(std::vector<int64_t> shape) const;   // view; contiguous only

    // Where ops read and write. While an arena is in use, it keeps the storage from now on; what the host has written comes
    // along. Throws std::invalid_argument where the tensor is not on the device in use.
    char* bytes() const;
    template <class T> T* data() const { return reinterpret_cast<T*>(bytes()); }
    // Elements that the host can read now: its own, or of a device what the host wrote there last; null where only the device
    // knows them.
    template <class T> const T* host() const { return reinterpret_cast<const T*>(host_bytes()); }
    char* host_bytes() const;
    char* lend() const;                                 // host_bytes for writing
    void send() const;                                  // what the host wrote, to the device
    void fetch(void* to) const;                         // all elements of a contiguous tensor, wherever they are
    void store(const void* from) const;                 // the same the other way
    std::string shape_text() const;                     // "[3, 4] f32"

private:
    friend class Arena;
    Tensor() = default;
    std::shared_ptr<char> storage_;
    // Of a device's storage: the same bytes on the host, and whether somebody may write there.
    struct Mirror {
        std::shared_ptr<char> bytes;
        bool lent = false;
    };
    std::shared_ptr<Mirror> mirror_;
    Device device_ = Device::cpu;
    char* data_ = nullptr;
    std::vector<int64_t> shape_;
    int64_t row_stride_ = 0;
    DType dtype_ = DType::f32;
};

}  // namespace genkit
