// The names of ImageNet's 1,000 classes (ILSVRC 2012), in the order of the published models'
// outputs.
#pragma once

#include <string>
#include <vector>

namespace graft {

std::vector<std::string> imagenet_classes();

}  // namespace graft
