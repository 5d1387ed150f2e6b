#include "tools/command.h"

#include <charconv>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <omp.h>
#include <poll.h>
#include <sstream>
#include <unistd.h>

#include "kernels/device.h"
#include "layers/models/zoo.h"

namespace graft {

CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& examples) {
  CLI::App* command = app.add_subcommand(name, description);
  std::string footer = "Examples:\n";
  std::istringstream lines(examples);
  for (std::string line; std::getline(lines, line);) footer += "  " + line + "\n";
  command->footer(footer);
  return command;
}

void add_json_option(CLI::App& command, bool& json) {
  command.add_flag("--json", json, "print JSON, one object a line");
}

void ComputeOptions::add_to(CLI::App& command) {
  command.add_option("--threads", threads, "CPU threads; 0 uses every core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  command
      .add_option_function<std::string>(
          "--precision",
          [this](const std::string& name) {
            precision = name == "bf16" ? Dtype::bf16 : Dtype::f32;
          },
          "f32, or bf16 activations: half the memory; weights stay f32")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->default_str("f32");
}

Device ComputeOptions::apply() const {
  if (threads > 0) omp_set_num_threads(threads);
  if (device == "cpu") return kCpu;
  if (device != "cuda" && device.rfind("cuda:", 0) != 0) {
    throw UsageError(text("--device: expected cpu, cuda or cuda:N, got \"", device, "\""));
  }
  Device chosen{Device::Kind::cuda, 0};
  if (device != "cuda") {
    const char *first = device.data() + 5, *last = device.data() + device.size();
    const auto [end, error] = std::from_chars(first, last, chosen.index);
    if (error != std::errc() || end != last || chosen.index < 0) {
      throw UsageError(text("--device: expected cpu, cuda or cuda:N, got \"", device, "\""));
    }
  }
  cuda::require_device(text("--device ", device).c_str(), chosen.index);
  return chosen;
}

CLI::Validator known_architecture() {
  return CLI::Validator(
      [](std::string& name) -> std::string {
        try {
          make_blank_model(name, {});
          return "";
        } catch (const Error& error) {
          return error.what();
        }
      },
      "");
}

void print_json(const nlohmann::ordered_json& value) {
  // Bytes that are not UTF-8 (file names may hold any) are replaced rather than thrown on.
  std::cout << value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
  flush_stdout();
}

void flush_stdout() {
  std::cout.flush();
  if (std::cout.good()) return;
  pollfd out{STDOUT_FILENO, POLLOUT, 0};
  const bool reader_left = poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0;
  if (reader_left) throw Exit{128 + SIGPIPE};  // head, for instance, has enough
  fail("stdout: cannot be written; is the disk full?");
}

}  // namespace graft
