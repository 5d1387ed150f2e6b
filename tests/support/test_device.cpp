#include "tests/support/test_device.h"

#include <cstdlib>
#include <string>

#include "kernels/device.h"
#include "kernels/error.h"

namespace graft::test {

Device test_device() {
  static const Device device = [] {
    const char* wish = std::getenv("GRAFT_TEST_DEVICE");
    if (wish == nullptr || std::string(wish) == "cpu") return kCpu;
    GRAFT_CHECK(std::string(wish) == "cuda" && cuda::device_count() > 0, "GRAFT_TEST_DEVICE=", wish,
                ": there is no such device");
    if (const char* order = std::getenv("GRAFT_TEST_ORDER"); order != nullptr) {
      const bool reverse = std::string(order) == "reverse";
      GRAFT_CHECK(reverse || std::string(order) == "random", "GRAFT_TEST_ORDER=", order,
                  ": there are reverse and random");
      cuda::set_thread_order(reverse ? cuda::ThreadOrder::reverse : cuda::ThreadOrder::random, 7);
    }
    return Device{Device::Kind::cuda, 0};
  }();
  return device;
}

}  // namespace graft::test
