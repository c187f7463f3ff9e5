// SPDX-License-Identifier: Apache-2.0
/// \file
/// Matrix products by cuBLASLt: y = x · wᵀ + bias, optionally through GELU, sums in FP32.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <tuple>

#include "support/device_memory.hpp"
#include "winnow/storage.hpp"

namespace winnow::swin {

/// What is done to a product before it is stored. cuBLASLt's GELU is the tanh form, which differs from
/// the exact one by at most 5e-4.
enum class epilogue { none, bias, bias_gelu };

/// One product: x [rows, inputs], w [outputs, inputs], y [rows, outputs], all packed; bias [outputs].
struct product {
  epilogue end = epilogue::none;
  int rows = 0;
  int inputs = 0;
  int outputs = 0;
  const void* x = nullptr;
  const void* w = nullptr;
  const void* bias = nullptr;
  void* y = nullptr;
};

/// The products of one storage type on the current device. Which of cuBLASLt's algorithms serves a shape
/// is measured once.
class matrix_products {
 public:
  explicit matrix_products(dtype type);
  matrix_products(const matrix_products&) = delete;
  matrix_products& operator=(const matrix_products&) = delete;
  ~matrix_products();

  /// Chooses the algorithm for the product's shape by running the candidates on its arrays; y is
  /// overwritten. Waits for the device. A shape that is known costs nothing.
  /// \throw std::runtime_error, as `run` does, if cuBLASLt or the CUDA runtime fails.
  void prepare(const product& work);
  /// Submits a product whose shape was prepared. Can be captured.
  void run(const product& work, cudaStream_t stream);

 private:
  using shape_key = std::tuple<epilogue, int, int, int>;
  static shape_key key_of(const product& work) {
    return {work.end, work.rows, work.inputs, work.outputs};
  }
  class description;
  cublasStatus_t submit(const product& work, const description& as, const cublasLtMatmulAlgo_t& how,
                        cudaStream_t stream);

  dtype type_;
  cublasLtHandle_t library_ = nullptr;
  support::device_memory workspace_;
  std::map<shape_key, cublasLtMatmulAlgo_t> chosen_;
};

}  // namespace winnow::swin
