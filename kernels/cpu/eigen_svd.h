// Eigen's singular value decomposition, compiled once for all who use it: that takes a minute. Not
// part of the interface: only .cpp files include it.
#pragma once

#include <Eigen/SVD>

extern template class Eigen::BDCSVD<Eigen::MatrixXd>;
