// SPDX-License-Identifier: Apache-2.0
// Training on the device: a contextual attention layer learns its tables from another one.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/device_gradients.hpp"

namespace winnow::test {
namespace {

constexpr int dim = 16;
constexpr int steps = 200;

/// The same layer for every storage type: fixed q, k, v, the tables of the teacher.
template <class T>
attention_case<T> make_layer() {
  return attention_case<T>({contextual(1, random_labels(400, 40, 4, true, false, 51))}, dim, 52);
}

/// Adam, on the host.
struct optimizer {
  std::vector<double> mean, square;
  void update(std::vector<float>& values, const std::vector<float>& gradient, int step) {
    constexpr double rate = 0.05, decay = 0.9, square_decay = 0.99;
    mean.resize(values.size());
    square.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double g = static_cast<double>(gradient[i]);
      mean[i] = decay * mean[i] + (1.0 - decay) * g;
      square[i] = square_decay * square[i] + (1.0 - square_decay) * g * g;
      const double unbiased = mean[i] / (1.0 - std::pow(decay, step + 1));
      const double spread = std::sqrt(square[i] / (1.0 - std::pow(square_decay, step + 1)));
      values[i] -= static_cast<float>(rate * unbiased / (spread + 1e-12));
    }
  }
};

struct training {
  double first_loss = 0.0;
  double last_loss = 0.0;
  std::vector<double> out;  ///< of the trained layer
};

/// Fits the layer's tables, which start at 0 and stay in float, to the teacher's output by the mean
/// squared error.
template <class T>
training train() {
  attention_case<double> teacher = make_layer<float>().widened();
  EXPECT_TRUE(reference::attention_forward<double>(teacher.forward()).ok());
  const attention_case<T> layer = make_layer<T>();
  device_gradients<T, float> device(layer);
  auto& tables = device.inputs.tables[0];
  device_array<float>* weights[] = {&tables.table_q, &tables.table_k, &tables.table_v};
  const device_array<float>* gradients[] = {&device.tables[0].table_q, &device.tables[0].table_k,
                                            &device.tables[0].table_v};
  std::vector<float> values[3];
  optimizer optimizers[3];
  for (int t = 0; t < 3; ++t) {
    values[t].assign(static_cast<std::size_t>(weights[t]->size()), 0.0f);
    weights[t]->copy_from(values[t]);
  }
  training result;
  for (int step = 0; step <= steps; ++step) {
    EXPECT_TRUE(attention_forward(device.inputs.forward(), nullptr, 0, nullptr).ok());
    synchronize();
    const std::vector<T> out = device.inputs.out.to_host();
    std::vector<T> grad_out;
    double loss = 0.0;
    result.out.clear();
    const double share_of_one = 1.0 / static_cast<double>(out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      // Tokens in no window have no output.
      const bool exists = std::isfinite(teacher.out[i]);
      const double value = exists ? static_cast<double>(to_float(out[i])) : 0.0;
      const double error = exists ? value - teacher.out[i] : 0.0;
      loss += error * error * share_of_one;
      grad_out.push_back(from_float<T>(static_cast<float>(2.0 * error * share_of_one)));
      result.out.push_back(value);
    }
    if (step == 0) result.first_loss = loss;
    result.last_loss = loss;
    if (step == steps) break;
    device.grad_out.copy_from(grad_out);
    const status done = device.run();
    EXPECT_TRUE(done.ok()) << done.message();
    for (int t = 0; t < 3; ++t) {
      optimizers[t].update(values[t], gradients[t]->to_host(), step);
      weights[t]->copy_from(values[t]);
    }
  }
  return result;
}

/// Every storage type learns the task, and the three layers then compute the same within 2 % (half)
/// and 4 % (bfloat16).
TEST(AttentionTrainingDevice, LearnsTheTablesOfATeacher) {
  WINNOW_SKIP_WITHOUT_GPU();
  const training exact = train<float>();
  const training narrow = train<half>();
  const training short_mantissa = train<bfloat16>();
  for (const training* result : {&exact, &narrow, &short_mantissa}) {
    RecordProperty("loss", std::to_string(result->last_loss));
    EXPECT_LT(result->last_loss * 100.0, result->first_loss);
  }
  EXPECT_LT(exact.last_loss * 1000.0, exact.first_loss);
  const auto distance = [&](const training& other) {
    double difference = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < exact.out.size(); ++i) {
      difference += (other.out[i] - exact.out[i]) * (other.out[i] - exact.out[i]);
      norm += exact.out[i] * exact.out[i];
    }
    return std::sqrt(difference / norm);
  };
  EXPECT_LT(distance(narrow), 0.02);
  EXPECT_LT(distance(short_mantissa), 0.04);
}

}  // namespace
}  // namespace winnow::test
