// Domain adaptation from options to a trained model: what `graft adapt` is a thin layer over.
//
//   graft::AdaptOptions options;
//   options.training.data = "photos";                 // the source: one sub-folder a class
//   options.training.weights = "lite0.safetensors";   // from `graft convert`
//   options.training.out = "run";
//   options.target = "drone";                         // pictures; labels are not needed
//   options.method = "cdan_e";
//   graft::AdaptObserver quiet;
//   graft::AdaptResult result = graft::adapt(options, quiet);
#pragma once

#include "transfer/adapt/trainer.h"

namespace graft {

// Trains as the options say. Nothing is written before options, data and weights have been checked.
// Throws Error on wrong options, domains whose classes differ (named), a target with one class or
// without images, unreadable data or weights, nothing left to train, a loss that is not finite.
AdaptResult adapt(const AdaptOptions& options, AdaptObserver& observer);

// Continues an interrupted run to the same files as if it had not been interrupted, given as many
// threads as before. device: where to go on; that of the run when not given. A finished run is
// returned as it is. Throws when the data or the frozen weights are not what they were.
AdaptResult resume_adapt(const std::filesystem::path& run, std::optional<Device> device,
                         AdaptObserver& observer);

}  // namespace graft
