// consumer PHOTOS WEIGHTS IMAGE: fine-tunes on a folder of photographs, one sub-folder a class, and
// says what is on one more image.
#include <engine/ops.h>
#include <iostream>
#include <transfer/finetune.h>

struct Printer : graft::Observer {
  void epoch_done(const graft::EpochReport& epoch) override {
    std::cout << "epoch " << epoch.epoch << ": loss " << epoch.train_loss << ", accuracy "
              << epoch.validation->accuracy << std::endl;
  }
};

int main(int argc, char** argv) try {
  if (argc != 4) graft::fail("usage: consumer PHOTOS WEIGHTS IMAGE");
  graft::FinetuneOptions options = graft::FinetuneOptions::fine_tuning();
  options.data = argv[1];
  options.weights = argv[2];  // from `graft convert`
  options.epochs = 3;
  options.out = "run";  // best.safetensors, metrics.jsonl and what --resume needs
  Printer printer;
  const graft::FinetuneResult result = graft::finetune(options, printer);

  const graft::Preprocessing& expected = result.card.preprocessing;
  const graft::Image image = eval_view(graft::load_image(argv[3], 3), expected);
  graft::Tensor x({1, image.height, image.width, image.channels});
  normalise(image, expected, x.mutable_data<float>());
  const graft::Tensor probabilities = graft::softmax(result.model->forward(x));
  const int64_t winner = graft::argmax(probabilities).to_vector<int64_t>()[0];
  std::cout << argv[3] << ": " << result.card.class_names[winner] << ", probability "
            << probabilities.to_vector<float>()[winner] << "\n";
} catch (const graft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
