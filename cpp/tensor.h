// Dense arrays in host memory: dtype, shape, storage. No maths.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace genkit {

int64_t dtype_size(DType dtype);          // bytes of one element
const char* dtype_name(DType dtype);      // "f32"
DType dtype_from_name(const std::string& name);  // throws std::invalid_argument listing the known names

// Storage is shared by views. Rows may be strided (a view of some columns); elements of a row are contiguous.
class Tensor {
public:
    // Uninitialized, or zeros that the system commits page by page on first write. Throws std::bad_alloc, and
    // std::invalid_argument for negative sizes and products that overflow.
    Tensor(std::vector<int64_t> shape, DType dtype, bool zero = false);

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

    char* bytes() const { return data_; }
    template <class T> T* data() const { return reinterpret_cast<T*>(data_); }
    std::string shape_text() const;                     // "[3, 4] f32"

private:
    Tensor() = default;
    std::shared_ptr<char> storage_;
    char* data_ = nullptr;
    std::vector<int64_t> shape_;
    int64_t row_stride_ = 0;
    DType dtype_ = DType::f32;
};

}  // namespace genkit
