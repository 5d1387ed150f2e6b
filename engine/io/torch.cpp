// The two containers of torch.save: a zip archive (since 1.6), and before that five pickles
// followed by the storages. Layouts: torch/serialization.py, caffe2/serialize/inline_container.cc.
#include <map>
#include <memory>

#include "engine/io/formats.h"
#include "engine/io/torch_tensors.h"

namespace graft {
namespace {

// A storage is looked up by every tensor that views it, and unpacked and verified once.
struct ZipStorages {
  ZipArchive archive;
  std::string root;
  std::map<std::string, Record, std::less<>> read = {};
  size_t unchecked = 0;
  std::string first_unchecked = {};

  Record record(const ZipEntry& entry) {
    if (entry.crc == 0 && entry.bytes > 0 && unchecked++ == 0) first_unchecked = entry.name;
    return archive.read(entry);
  }
};

std::string_view chars_of(const Record& record) {
  return {reinterpret_cast<const char*>(record.bytes.data()), record.bytes.size()};
}

WeightFile parse_zip(const FileBytes& file) {
  const auto zip = std::make_shared<ZipStorages>(ZipStorages{ZipArchive(file), ""});
  const auto& entries = zip->archive.entries();
  const std::string_view first = entries.empty() ? std::string_view() : entries[0].name;
  // The folder is called after the file that was saved, whatever the file is called now.
  zip->root = first.substr(0, first.find('/'));
  for (const ZipEntry& entry : entries) {
    GRAFT_CHECK(
        entry.name != zip->root + "/constants.pkl" && !entry.name.starts_with(zip->root + "/code/"),
        file.name, ": is a TorchScript archive, a program; in PyTorch, save the weights ",
        "alone: torch.save(torch.jit.load(FILE).state_dict(), NEW)");
  }
  const ZipEntry* pickle = zip->archive.find(zip->root + "/data.pkl");
  GRAFT_CHECK(pickle != nullptr, file.name,
              ": is a zip archive, but not a PyTorch checkpoint: there is no record data.pkl");

  TorchCheckpoint checkpoint;
  checkpoint.where = file.name;
  checkpoint.file_bytes = file.bytes.size();
  if (const ZipEntry* order = zip->archive.find(zip->root + "/byteorder")) {
    const Record record = zip->record(*order);
    checkpoint.big_endian = chars_of(record) == "big";
    GRAFT_CHECK(checkpoint.big_endian || chars_of(record) == "little", file.name,
                ": the record byteorder says '", printable(chars_of(record)),
                "', neither little nor big");
  }
  // The graph's strings are views of this record: it has to live as long.
  const Record record = zip->record(*pickle);
  ByteReader in(record.bytes, file.name + ": record " + printable(pickle->name));
  checkpoint.graph = read_pickle(in);
  GRAFT_CHECK(in.remaining() == 0, in.where(), ": ", in.remaining(),
              " bytes follow the end of the pickle");
  checkpoint.find = [&](const TorchStorage& storage) {
    const auto known = zip->read.find(storage.key);
    if (known != zip->read.end()) return known->second;
    const ZipEntry* entry = zip->archive.find(text(zip->root, "/data/", storage.key));
    GRAFT_CHECK(entry != nullptr, file.name, ": the record data/", printable(storage.key),
                " of a tensor is missing");
    return zip->read.emplace(storage.key, zip->record(*entry)).first->second;
  };

  WeightFile result;
  result.format = "PyTorch zip";
  collect_tensors(checkpoint, result);
  if (zip->unchecked > 0) {
    result.notes.push_back(text(zip->unchecked, " records carry no checksum; the first is ",
                                printable(zip->first_unchecked)));
  }
  return result;
}

// Item sizes are told by the tensors alone, so the storages are found through them.
std::map<std::string_view, TorchStorage> named_storages(const TorchCheckpoint& checkpoint) {
  std::map<std::string_view, TorchStorage> storages;
  for (PickleId id = 0; id < checkpoint.graph.nodes.size(); ++id) {
    if (checkpoint.graph[id].kind != PickleKind::persistent) continue;
    const TorchStorage storage = storage_of(checkpoint, id);
    const TorchStorage& first = storages.emplace(storage.key, storage).first->second;
    GRAFT_CHECK(first.count == storage.count && first.type == storage.type, checkpoint.where,
                ": the storage ", printable(storage.key), " is described in two ways");
  }
  return storages;
}

WeightFile parse_legacy(const FileBytes& file) {
  ByteReader in(file.bytes, file.name);
  read_pickle(in);  // the magic number, which brought us here
  const PickleGraph protocol = read_pickle(in);
  GRAFT_CHECK(protocol[protocol.root].kind == PickleKind::integer &&
                  protocol[protocol.root].integer == 1001,
              file.name, ": a PyTorch checkpoint of an unknown protocol; 1001 can be read");
  TorchCheckpoint checkpoint;
  checkpoint.where = file.name;
  checkpoint.file_bytes = file.bytes.size();
  read_pickle(in);  // about the machine; the storages are little-endian on every machine
  checkpoint.graph = read_pickle(in);
  const PickleGraph keys = read_pickle(in);

  const auto named = named_storages(checkpoint);
  std::map<std::string_view, Record> records;
  GRAFT_CHECK(keys[keys.root].kind == PickleKind::list, file.name,
              ": the list of storages is missing");
  for (const PickleId id : keys[keys.root].items) {
    const std::string_view key = keys[id].text;
    const auto storage = named.find(key);
    GRAFT_CHECK(keys[id].kind == PickleKind::string && storage != named.end(), file.name,
                ": the storage ", printable(key), " belongs to no tensor");
    const size_t at = in.position();
    const auto count = in.little<uint64_t>("size of a storage");
    uint64_t bytes = 0;
    GRAFT_CHECK(count == storage->second.count &&
                    !__builtin_mul_overflow(count, storage->second.item_bytes, &bytes),
                file.name, ": byte ", at, ": the storage ", printable(key), " has ", count,
                " elements, its tensors want ", storage->second.count);
    const size_t data_at = in.position();
    in.take(bytes, "storage");
    GRAFT_CHECK(records.emplace(key, Record{file.bytes.subspan(data_at, bytes), file.owner}).second,
                file.name, ": the storage ", printable(key), " stands twice in the list");
  }
  GRAFT_CHECK(in.remaining() == 0, file.name, ": byte ", in.position(), ": ", in.remaining(),
              " bytes follow the last storage");
  checkpoint.find = [&](const TorchStorage& storage) {
    const auto found = records.find(storage.key);
    GRAFT_CHECK(found != records.end(), file.name, ": the storage ", printable(storage.key),
                " of a tensor is missing");
    return found->second;
  };
  WeightFile result;
  result.format = "PyTorch legacy";
  collect_tensors(checkpoint, result);
  result.notes.push_back("this older format carries no checksums");
  return result;
}

}  // namespace

WeightFile parse_torch(const FileBytes& file) {
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size());
  GRAFT_CHECK(
      !(bytes.size() > 262 && bytes.substr(257, 5) == "ustar"), file.name,
      ": is a tar checkpoint of PyTorch 0.1; open it in PyTorch older than 2.6 and save it ",
      "again");
  if (bytes.starts_with("PK")) return parse_zip(file);
  GRAFT_CHECK(bytes.starts_with("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"),
              file.name, ": is not a PyTorch checkpoint (a zip archive or the format before 1.6)");
  return parse_legacy(file);
}

}  // namespace graft
