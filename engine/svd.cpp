#include "engine/svd.h"

template class Eigen::BDCSVD<Eigen::MatrixXd>;
