// Proof that frozen means frozen: every tensor that a phase declares frozen is hashed before it and
// after it, and a run in which one byte moved fails.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "layers/module.h"

namespace graft {

struct FreezeProof {
  std::string phase;
  // Name -> SHA-256 of the tensor's bytes as they stand in a file, before the phase.
  std::map<std::string, std::string> sha256;
  bool verified = false;  // found unchanged after it
};

FreezeProof hash_frozen(const std::string& phase, const std::vector<NamedTensor>& frozen);
// Sets `verified`. Throws naming what moved; `frozen` are the same tensors, now.
void verify_frozen(FreezeProof& proof, const std::vector<NamedTensor>& frozen);

// freeze_proof.json and back; throws naming the file when it is damaged.
std::string to_json(const std::vector<FreezeProof>& proofs);
std::vector<FreezeProof> proofs_from_json(const std::string& json, const std::string& source);

}  // namespace graft
