// The runs of the Amazon experiment: reviews of four kinds of products as counts of words, positive
// or negative (Blitzer et al., ACL 2007; counts of Chen et al., ICML 2012), learnt from one kind
// and judged on another, as Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR
// 17(59), 2016, section 5.1.3, do it.
#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine/data/svmlight.h"
#include "transfer/adapt/trainer.h"

namespace graft {

struct Reviews {
  SparseRows train, test;
};
inline constexpr std::array kProducts{"books", "dvd", "electronics", "kitchen"};

// PRODUCT_train.svmlight or PRODUCT_test.svmlight, either with .gz. Throws with where to get it.
std::filesystem::path review_file(const std::filesystem::path& folder, const std::string& name);

// By product, from these files. Throws on labels other than -1 (or 0) and 1.
std::map<std::string, Reviews> read_reviews(const std::filesystem::path& folder);

// The source's training reviews, a tenth of which is held out and chooses the epoch; the target's
// without labels; the target's test reviews to judge. Like the paper's: 5000 counts, 100 sigmoid
// hidden units, a logistic regression as domain classifier, lambda on its whole loss. Unlike it:
// Adam at 1e-3 in batches of 50 instead of gradient descent by single reviews, and one lambda, 0.1.
AdaptRun amazon_run(const Reviews& source, const Reviews& target, const std::string& method,
                    int64_t epochs, uint64_t seed);

}  // namespace graft
