#include "transfer/activation_store.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "kernels/element.h"
#include "kernels/error.h"

namespace graft {
namespace {

constexpr char kMagic[8] = {'g', 'r', 'a', 'f', 't', 'a', 'c', '1'};
constexpr size_t kMostDimensions = 4, kKeyBytes = 64;

struct Header {
  char magic[8];
  uint32_t dtype, rank;
  int64_t shape[kMostDimensions];
  int64_t rows;
  char key[kKeyBytes];
};
static_assert(sizeof(Header) == 120);

Header header_of(const ActivationLayout& layout) {
  GRAFT_CHECK(layout.row.size() <= kMostDimensions && layout.key.size() <= kKeyBytes,
              "activation store: expected at most four sizes and a key of 64 characters, got ",
              layout.row, " and \"", layout.key, "\"");
  Header header{};
  std::copy(std::begin(kMagic), std::end(kMagic), header.magic);
  header.dtype = layout.dtype == Dtype::f32 ? 0 : 1;
  header.rank = static_cast<uint32_t>(layout.row.size());
  std::copy(layout.row.begin(), layout.row.end(), header.shape);
  header.rows = layout.rows;
  std::copy(layout.key.begin(), layout.key.end(), header.key);
  return header;
}

}  // namespace

void Checksum::add(const void* data, size_t bytes) {
  const auto* next = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const size_t n = std::min<size_t>(bytes, 8);
    uint64_t word = 0;
    std::memcpy(&word, next, n);
    state_ = (state_ ^ word) * 0x9e3779b97f4a7c15ull;
    state_ ^= state_ >> 29;
    next += n;
    bytes -= n;
  }
}

int64_t ActivationLayout::row_values() const {
  return std::accumulate(row.begin(), row.end(), int64_t{1}, std::multiplies<>());
}

void ActivationStore::read(int64_t row, float* out) const {
  const auto count = static_cast<size_t>(layout_.row_values());
  const uint8_t* from = data_ + static_cast<size_t>(row) * layout_.row_bytes();
  if (layout_.dtype == Dtype::f32) {
    std::memcpy(out, from, count * sizeof(float));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    Bf16 value;
    std::memcpy(&value, from + i * sizeof value, sizeof value);
    out[i] = static_cast<float>(value);
  }
}

std::optional<ActivationStore> ActivationStore::open(const std::filesystem::path& file,
                                                     const ActivationLayout& wanted,
                                                     std::string& why) {
  why.clear();
  if (!std::filesystem::exists(file)) return std::nullopt;
  const auto refuse = [&](const char* reason) {
    why = file.string() + ": " + reason;
    return std::nullopt;
  };
  FileBytes mapped;
  try {
    mapped = map_file(file);
  } catch (const Error& error) {
    why = error.what();
    return std::nullopt;
  }
  const std::span<uint8_t> bytes = mapped.bytes;
  const Header header = header_of(wanted);
  const size_t payload = static_cast<size_t>(wanted.rows) * wanted.row_bytes();
  uint64_t list_bytes = 0, checksum = 0;
  const size_t around = sizeof header + sizeof list_bytes + sizeof checksum;
  if (bytes.size() < sizeof header || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    return refuse("it is no file of cached activations");
  }
  if (std::memcmp(bytes.data(), &header, sizeof header) != 0) {
    return refuse("it was made from other weights, images or options");
  }
  if (bytes.size() < around || bytes.size() - around < payload) return refuse("it is cut short");
  const uint8_t* list_at = bytes.data() + sizeof header + payload;
  std::memcpy(&list_bytes, list_at, sizeof list_bytes);
  list_at += sizeof list_bytes;
  if (list_bytes != bytes.size() - around - payload) return refuse("its length is not right");
  Checksum sum;
  const uint8_t* rows = bytes.data() + sizeof header;
  sum.add(&header, sizeof header);
  for (int64_t i = 0; i < wanted.rows; ++i) {
    sum.add(rows + static_cast<size_t>(i) * wanted.row_bytes(), wanted.row_bytes());
  }
  sum.add(&list_bytes, sizeof list_bytes);
  sum.add(list_at, list_bytes);
  std::memcpy(&checksum, list_at + list_bytes, sizeof checksum);
  if (checksum != sum.value()) return refuse("its checksum is not right");
  if (list_bytes > 0) return refuse("some images could not be read when it was made");

  ActivationStore store;
  store.layout_ = wanted;
  store.there_.assign(static_cast<size_t>(wanted.rows), true);
  store.owner_ = mapped.owner;
  store.data_ = rows;
  return store;
}

ActivationWriter::ActivationWriter(ActivationLayout layout, bool in_memory,
                                   std::filesystem::path file)
    : layout_(std::move(layout)),
      path_(std::move(file)),
      there_(static_cast<size_t>(layout_.rows)),
      row_(layout_.row_bytes()) {
  if (in_memory) {
    memory_ = std::make_shared<std::vector<uint8_t>>();
    memory_->reserve(static_cast<size_t>(layout_.rows) * layout_.row_bytes());
  }
  if (path_.empty()) return;
  file_ = std::make_unique<AtomicFile>(path_);
  const Header header = header_of(layout_);
  file_->write(&header, sizeof header);
  checksum_.add(&header, sizeof header);
}

ActivationWriter::~ActivationWriter() = default;

void ActivationWriter::put(const void* data, size_t bytes) {
  const auto* first = static_cast<const uint8_t*>(data);
  if (memory_) memory_->insert(memory_->end(), first, first + bytes);
  if (!file_) return;
  file_->write(data, bytes);
  checksum_.add(data, bytes);
}

void ActivationWriter::fill_up_to(int64_t row) {
  GRAFT_CHECK(row <= layout_.rows, "activation store: expected ", layout_.rows, " rows, got more");
  std::fill(row_.begin(), row_.end(), uint8_t{0});
  for (; next_ < row; ++next_) put(row_.data(), row_.size());
}

void ActivationWriter::add(int64_t row, const float* values) {
  GRAFT_CHECK(row >= next_ && row < layout_.rows, "activation store: row ", row,
              " does not follow ", next_ - 1, " of ", layout_.rows);
  fill_up_to(row);
  if (layout_.dtype == Dtype::f32) {
    std::memcpy(row_.data(), values, row_.size());
  } else {
    for (int64_t i = 0; i < layout_.row_values(); ++i) {
      const Bf16 value(values[i]);
      std::memcpy(row_.data() + static_cast<size_t>(i) * sizeof value, &value, sizeof value);
    }
  }
  put(row_.data(), row_.size());
  there_[static_cast<size_t>(next_++)] = true;
}

ActivationStore ActivationWriter::finish(std::vector<std::string> bad_images) {
  fill_up_to(layout_.rows);
  if (file_) {
    std::string list;
    for (const std::string& bad : bad_images) list += bad + '\n';
    const uint64_t list_bytes = list.size();
    file_->write(&list_bytes, sizeof list_bytes);
    checksum_.add(&list_bytes, sizeof list_bytes);
    file_->write(list.data(), list.size());
    checksum_.add(list.data(), list.size());
    const uint64_t checksum = checksum_.value();
    file_->write(&checksum, sizeof checksum);
    file_->commit();
    file_.reset();
  }
  ActivationStore store;
  if (memory_) {
    store.data_ = memory_->data();
    store.owner_ = std::move(memory_);
  } else {
    const FileBytes mapped = map_file(path_);
    store.data_ = mapped.bytes.data() + sizeof(Header);
    store.owner_ = mapped.owner;
  }
  store.layout_ = std::move(layout_);
  store.there_ = std::move(there_);
  store.bad_images_ = std::move(bad_images);
  return store;
}

}  // namespace graft
