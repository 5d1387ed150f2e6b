// The methods of domain adaptation by name. A new one is a file with a function like these, a line
// here and a line in the table of methods.cpp.
#pragma once

#include "transfer/adapt/method.h"

namespace graft {

MethodInfo source_only_method();
MethodInfo adabn_method();
MethodInfo dann_method();
MethodInfo cdan_method();
MethodInfo cdan_e_method();
MethodInfo adda_method();
MethodInfo dan_method();
MethodInfo jan_method();
MethodInfo coral_method();
MethodInfo mcd_method();
MethodInfo mdd_method();
MethodInfo afn_method();
MethodInfo bsp_method();
MethodInfo mcc_method();
MethodInfo entropy_method();

const std::vector<MethodInfo>& adapt_methods();
// Throws with near names, or all of them, when there is none of this name.
const MethodInfo& adapt_method(const std::string& name);

}  // namespace graft
