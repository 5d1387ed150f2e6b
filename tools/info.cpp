// `graft info`: what this build and this machine offer.
#include <iostream>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

#include "kernels/device.h"
#include "kernels/kernels.h"
#include "layers/models/zoo.h"
#include "tools/command.h"
#include "transfer/version.h"

namespace graft {
namespace {

const char* backends() {
  if (kHasCuda) return ", with CUDA";
  return cuda::device_count() > 0 ? ", with a simulated CUDA device" : ", CPU only";
}

void run_info(bool json) {
  const dnnl_version_t* onednn = dnnl_version();
  nlohmann::ordered_json info;
  info["version"] = version();
  info["cuda_build"] = kHasCuda;
  info["instruction_set"] = cpu::use_avx512() ? "AVX-512" : "AVX2";
  info["threads"] = omp_get_max_threads();
  info["onednn"] = text(onednn->major, '.', onednn->minor, '.', onednn->patch);
  info["devices"] = {"cpu"};
  for (int i = 0; i < cuda::device_count(); ++i) info["devices"].push_back(text("cuda:", i));
  info["architectures"] = architectures();
  if (json) {
    print_json(info);
    return;
  }
  const auto list = [&](const char* key) {
    std::string names;
    for (const std::string& name : info[key].get<std::vector<std::string>>()) {
      names += (names.empty() ? "" : " ") + name;
    }
    return names;
  };
  std::cout << "graft " << version() << backends() << "\n"
            << "instruction set  " << info["instruction_set"].get<std::string>() << "\n"
            << "threads          " << omp_get_max_threads() << "\n"
            << "oneDNN           " << info["onednn"].get<std::string>() << "\n"
            << "devices          " << list("devices") << "\n"
            << "architectures    " << list("architectures") << "\n";
}

}  // namespace

void add_info(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command =
      add_command(app, "info", "Show version, instruction set, devices and architectures",
                  "graft info\ngraft info --json");
  add_json_option(*command, *json);
  command->callback([json] { run_info(*json); });
}

}  // namespace graft
