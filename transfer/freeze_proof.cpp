#include "transfer/freeze_proof.h"

#include <nlohmann/json.hpp>

#include "engine/io/weights.h"
#include "kernels/error.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

std::string hash_of(const NamedTensor& entry) {
  const Tensor tensor = to_file_layout(entry);
  return sha256_hex_of(tensor.raw(), tensor.bytes());
}

}  // namespace

FreezeProof hash_frozen(const std::string& phase, const std::vector<NamedTensor>& frozen) {
  FreezeProof proof;
  proof.phase = phase;
  for (const NamedTensor& entry : frozen) proof.sha256[entry.name] = hash_of(entry);
  return proof;
}

void verify_frozen(FreezeProof& proof, const std::vector<NamedTensor>& frozen) {
  std::vector<std::string> moved;
  for (const NamedTensor& entry : frozen) {
    const auto before = proof.sha256.find(entry.name);
    if (before == proof.sha256.end() || before->second != hash_of(entry)) {
      moved.push_back(entry.name);
    }
  }
  const size_t count = moved.size();
  if (count > 5) moved.resize(5);
  GRAFT_CHECK(
      count == 0 && proof.sha256.size() == frozen.size(), "freeze proof: ", count, " of ",
      frozen.size(), " tensors that phase \"", proof.phase,
      "\" declares frozen are not what they were before it: ", moved,
      "; this is a defect of graft, or the run's files were changed: do not use its weights");
  proof.verified = true;
}

std::string to_json(const std::vector<FreezeProof>& proofs) {
  Json json;
  json["what"] = "SHA-256 of every tensor declared frozen, before its phase";
  json["phases"] = Json::array();
  for (const FreezeProof& proof : proofs) {
    json["phases"].push_back({{"phase", proof.phase},
                              {"verified", proof.verified},
                              {"tensors", proof.sha256.size()},
                              {"sha256", proof.sha256}});
  }
  return json.dump(2) + "\n";
}

std::vector<FreezeProof> proofs_from_json(const std::string& json, const std::string& source) {
  std::vector<FreezeProof> proofs;
  try {
    const Json parsed = Json::parse(json);
    for (const Json& entry : parsed.at("phases")) {
      FreezeProof proof;
      proof.phase = entry.at("phase");
      proof.verified = entry.at("verified");
      proof.sha256 = entry.at("sha256").get<std::map<std::string, std::string>>();
      proofs.push_back(std::move(proof));
    }
  } catch (const Json::exception& error) {
    fail(source, ": is damaged: ", error.what(), "; start the run again with --force");
  }
  return proofs;
}

}  // namespace graft
