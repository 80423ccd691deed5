#include "tensor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

namespace genkit {
namespace {

struct DTypeInfo {
    DType dtype;
    const char* name;
    int64_t size;
};
constexpr DTypeInfo dtypes[] = {
    {DType::f32, "f32", 4}, {DType::f16, "f16", 2}, {DType::bf16, "bf16", 2}, {DType::i8, "i8", 1}, {DType::u8, "u8", 1},
    {DType::i16, "i16", 2}, {DType::u16, "u16", 2}, {DType::i32, "i32", 4},   {DType::i64, "i64", 8},
};

constexpr size_t line = 64;               // a cache line, and the widest vector
constexpr size_t huge_page = size_t{1} << 21;

// Large blocks come from the system on a 2 MiB boundary with huge pages advised, and are zero until written.
std::shared_ptr<char> allocate(size_t bytes, bool zero) {
    if (bytes >= huge_page) {
        size_t length = bytes + huge_page;
        void* base = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) throw std::bad_alloc();
        auto address = reinterpret_cast<uintptr_t>(base);
        char* aligned = reinterpret_cast<char*>((address + huge_page - 1) / huge_page * huge_page);
#ifdef MADV_HUGEPAGE
        // Not for zeros: those are large caches of which little may ever be touched.
        if (!zero) madvise(aligned, bytes, MADV_HUGEPAGE);
#endif
        return {aligned, [base, length](char*) { munmap(base, length); }};
    }
    size_t rounded = (bytes + line - 1) / line * line + line;
    void* block = std::aligned_alloc(line, rounded);
    if (block == nullptr) throw std::bad_alloc();
    if (zero) std::memset(block, 0, rounded);
    return {static_cast<char*>(block), [](char* p) { std::free(p); }};
}

std::shared_ptr<char> allocate_in_use(size_t bytes, bool zero) {
    return device_in_use() == Device::cpu ? allocate(bytes, zero) : allocate_on_device(bytes, zero);
}

thread_local Arena* arena_in_use = nullptr;

// Whole numbers up to here say where things are: the host checks them, and may change them between replays.
constexpr int64_t mirrored_most = 1 << 20;

}  // namespace

Arena::Scope::Scope(Arena* arena) : before_(arena_in_use) { arena_in_use = arena; }

Arena::Scope::~Scope() { arena_in_use = before_; }

// The smallest free block that is large enough, whole: a step asks for the same few sizes in every layer.
std::shared_ptr<char> Arena::take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t best = blocks_.size();
    for (size_t i = 0; i < blocks_.size(); i++)
        if (blocks_[i].free && blocks_[i].bytes >= bytes && (best == blocks_.size() || blocks_[i].bytes < blocks_[best].bytes))
            best = i;
    if (best == blocks_.size()) blocks_.push_back({allocate_in_use(bytes, false), bytes, false});
    blocks_[best].free = false;
    return {blocks_[best].memory.get(), [self = shared_from_this(), best](char*) { self->give_back(best); }};
}

void Arena::give_back(size_t block) {
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_[block].free = open_;
}

Arena::Arena(bool keeps) : keeps_(keeps) {}
Arena::~Arena() = default;

void Arena::share(const Arena& other) {
    std::scoped_lock lock(mutex_, other.mutex_);
    for (const Block& b : other.blocks_) blocks_.push_back({b.memory, b.bytes, true});
}

void Arena::keep(const Tensor& t) {
    if (!keeps_) return;
    const std::shared_ptr<char>& storage = t.storage_;
    std::lock_guard<std::mutex> lock(mutex_);
    if (t.mirror_ && std::none_of(inputs_.begin(), inputs_.end(), [&](const Tensor& i) { return i.storage_ == storage; }))
        inputs_.push_back(t);
    if (std::any_of(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.memory.get() == storage.get(); })) return;
    if (std::find(kept_.begin(), kept_.end(), storage) == kept_.end()) kept_.push_back(storage);
}

void Arena::send_inputs() const {
    for (const Tensor& t : inputs_) t.send();
}

bool Arena::owns(const Tensor& t) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::any_of(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.memory.get() == t.storage_.get(); });
}

void Arena::close() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
}

std::vector<Tensor> Arena::blocks() const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Tensor> all;
    for (const Block& b : blocks_) {
        Tensor t;
        t.storage_ = b.memory;
        t.data_ = b.memory.get();
        t.dtype_ = DType::u8;
        t.device_ = device_in_use();
        t.shape_ = {static_cast<int64_t>(b.bytes)};
        t.row_stride_ = 1;
        all.push_back(t);
    }
    return all;
}

int64_t dtype_size(DType dtype) { return dtypes[static_cast<size_t>(dtype)].size; }

const char* dtype_name(DType dtype) { return dtypes[static_cast<size_t>(dtype)].name; }

DType dtype_from_name(const std::string& name) {
    std::string known;
    for (const auto& d : dtypes) {
        if (name == d.name) return d.dtype;
        known += std::string(known.empty() ? "" : ", ") + d.name;
    }
    throw std::invalid_argument("unknown dtype '" + name + "'; known: " + known);
}

Tensor::Tensor(std::vector<int64_t> shape, DType dtype, bool zero) : shape_(std::move(shape)), dtype_(dtype) {
    // Half the address space is a bound that no product below may pass.
    const int64_t limit = std::numeric_limits<int64_t>::max() / 2 / dtype_size(dtype);
    int64_t total = 1;
    for (int64_t d : shape_) {
        if (d < 0) throw std::invalid_argument("negative size " + std::to_string(d) + " in a tensor's shape");
        if (d > 0 && total > limit / d) throw std::invalid_argument("tensor of " + shape_text() + " is too large");
        total *= d;
    }
    row_stride_ = shape_.empty() || shape_[0] == 0 ? 1 : total / shape_[0];
    const size_t bytes = static_cast<size_t>(total * dtype_size(dtype));
    device_ = device_in_use();
    storage_ = arena_in_use != nullptr && !zero ? arena_in_use->take(bytes) : allocate_in_use(bytes, zero);
    data_ = storage_.get();
}

Tensor Tensor::to(Device device) const {
    if (device == device_) return *this;
    if (!contiguous()) throw std::invalid_argument("a strided view " + shape_text() + " cannot go to another device");
    const DeviceScope there(device);
    Arena::Scope constant(nullptr);
    Tensor copy(shape_, dtype_);
    if (device == Device::cpu) {
        fetch(copy.data_);
        return copy;
    }
    const bool whole = dtype_ == DType::i32 || dtype_ == DType::i64;
    if (whole && count() <= mirrored_most) {
        copy.mirror_ = std::make_shared<Mirror>();
        copy.mirror_->bytes = allocate(static_cast<size_t>(nbytes()), false);
        std::memcpy(copy.mirror_->bytes.get(), data_, static_cast<size_t>(nbytes()));
    }
    check_device("copying to the device", device_plugin().upload(copy.data_, data_, static_cast<size_t>(nbytes())));
    return copy;
}

char* Tensor::bytes() const {
    if (device_ != device_in_use())
        throw std::invalid_argument("a tensor " + shape_text() + " on " + device_name(device_) + " cannot be used on " +
                                    device_name(device_in_use()));
    if (arena_in_use != nullptr) arena_in_use->keep(*this);
    send();
    return data_;
}

char* Tensor::host_bytes() const {
    if (device_ == Device::cpu) return data_;
    return mirror_ ? mirror_->bytes.get() + (data_ - storage_.get()) : nullptr;
}

char* Tensor::lend() const {
    if (mirror_) mirror_->lent = true;
    return host_bytes();
}

void Tensor::send() const {
    if (mirror_ && mirror_->lent) check_device("copying to the device", device_plugin().upload(data_, host_bytes(), static_cast<size_t>(nbytes())));
}

void Tensor::fetch(void* to) const {
    if (!contiguous()) throw std::invalid_argument("a strided view " + shape_text() + " cannot be fetched");
    if (device_ == Device::cpu) std::memcpy(to, data_, static_cast<size_t>(nbytes()));
    else check_device("copying from the device", device_plugin().download(to, data_, static_cast<size_t>(nbytes())));
}

void Tensor::store(const void* from) const {
    if (!contiguous()) throw std::invalid_argument("a strided view " + shape_text() + " cannot be written to");
    const auto bytes = static_cast<size_t>(nbytes());
    if (bytes == 0) return;
    if (char* host = host_bytes()) std::memcpy(host, from, bytes);
    if (device_ != Device::cpu) check_device("copying to the device", device_plugin().upload(data_, from, bytes));
}

int64_t Tensor::count() const {
    int64_t total = 1;
    for (int64_t d : shape_) total *= d;
    return total;
}

bool Tensor::contiguous() const {
    if (rank() == 0 || dim(0) <= 1) return true;
    return row_stride_ == count() / dim(0);
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
    if (rank() < 1 || begin < 0 || begin > end || end > dim(0))
        throw std::invalid_argument("rows " + std::to_string(begin) + ":" + std::to_string(end) + " of " + shape_text());
    Tensor view = *this;
    view.data_ += begin * row_stride_ * dtype_size(dtype_);
    view.shape_[0] = end - begin;
    return view;
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
    if (rank() != 2 || begin < 0 || begin > end || end > dim(1))
        throw std::invalid_argument("columns " + std::to_string(begin) + ":" + std::to_string(end) + " of " + shape_text());
    Tensor view = *this;
    view.data_ += begin * dtype_size(dtype_);
    view.shape_[1] = end - begin;
    return view;
}

Tensor Tensor::reshape(std::vector<int64_t> shape) const {
    int64_t total = 1;
    for (int64_t d : shape) {
        if (d < 0) throw std::invalid_argument("negative size " + std::to_string(d) + " in a shape");
        total *= d;
    }
    if (!contiguous() || total != count()) {
        Tensor wanted;
        wanted.shape_ = shape;
        wanted.dtype_ = dtype_;
        throw std::invalid_argument("cannot view " + shape_text() + " as " + wanted.shape_text());
    }
    Tensor view = *this;
    view.row_stride_ = shape.empty() || shape[0] == 0 ? 1 : total / shape[0];
    view.shape_ = std::move(shape);
    return view;
}

std::string Tensor::shape_text() const {
    std::string text = "[";
    for (size_t i = 0; i < shape_.size(); i++) text += (i ? ", " : "") + std::to_string(shape_[i]);
    return text + "] " + dtype_name(dtype_);
}

}  // namespace genkit
