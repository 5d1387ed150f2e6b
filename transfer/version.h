#pragma once

namespace graft {

// "0.1.0", as in CMakeLists.txt; written into every run folder.
const char* version();

}  // namespace graft
