// SPDX-License-Identifier: Apache-2.0
#include "swin/gemm.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "swin/graph.hpp"

namespace winnow::swin {
namespace {

constexpr std::size_t workspace_size = std::size_t{32} << 20;
constexpr int most_candidates = 32;
/// A graph of several, because launching one takes longer than many a product.
constexpr int products_of_graph = 20;
constexpr int timed_runs = 3;

void check_blas(cublasStatus_t result, const char* what) {
  if (result != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string(what) + ": " + cublasLtGetStatusString(result));
}

cublasLtEpilogue_t epilogue_of(epilogue end) {
  switch (end) {
    case epilogue::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case epilogue::bias_gelu:
      return CUBLASLT_EPILOGUE_GELU_BIAS;
    case epilogue::none:
      break;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

}  // namespace

/// cuBLASLt thinks in columns: a row-major matrix is its transpose to it, so it computes
/// yᵀ = w · xᵀ with w transposed from what lies in memory.
class matrix_products::description {
 public:
  description(const product& work, dtype type) {
    const cudaDataType_t element = type == dtype::float16 ? CUDA_R_16F : CUDA_R_16BF;
    check_blas(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate");
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(work.end));
    if (work.end != epilogue::none) {
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, work.bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, element);
    }
    make(&w_, element, work.inputs, work.outputs);
    make(&x_, element, work.inputs, work.rows);
    make(&y_, element, work.outputs, work.rows);
  }
  description(const description&) = delete;
  description& operator=(const description&) = delete;
  ~description() {
    for (const cublasLtMatrixLayout_t layout : {w_, x_, y_})
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(operation_);
  }

  [[nodiscard]] cublasLtMatmulDesc_t operation() const { return operation_; }
  [[nodiscard]] cublasLtMatrixLayout_t w() const { return w_; }
  [[nodiscard]] cublasLtMatrixLayout_t x() const { return x_; }
  [[nodiscard]] cublasLtMatrixLayout_t y() const { return y_; }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, Value value) {
    check_blas(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value),
               "cublasLtMatmulDescSetAttribute");
  }
  static void make(cublasLtMatrixLayout_t* layout, cudaDataType_t element, int rows, int columns) {
    check_blas(cublasLtMatrixLayoutCreate(layout, element, static_cast<std::uint64_t>(rows),
                                          static_cast<std::uint64_t>(columns), rows),
               "cublasLtMatrixLayoutCreate");
  }

  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
};

matrix_products::matrix_products(dtype type) : type_(type), workspace_(workspace_size) {
  check_blas(cublasLtCreate(&library_), "cublasLtCreate");
}

matrix_products::~matrix_products() {
  cublasLtDestroy(library_);
}

cublasStatus_t matrix_products::submit(const product& work, const description& as,
                                       const cublasLtMatmulAlgo_t& how, cudaStream_t stream) {
  const float one = 1.0f;
  const float zero = 0.0f;
  return cublasLtMatmul(library_, as.operation(), &one, work.w, as.w(), work.x, as.x(), &zero,
                        work.y, as.y(), work.y, as.y(), &how, workspace_.data(), workspace_.bytes(),
                        stream);
}

void matrix_products::prepare(const product& work) {
  if (work.rows == 0 || chosen_.count(key_of(work)) != 0) return;
  const description as(work, type_);
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const std::size_t bytes = workspace_.bytes();
  std::vector<cublasLtMatmulHeuristicResult_t> candidates(most_candidates);
  int found = 0;
  cublasStatus_t result = cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
  if (result == CUBLAS_STATUS_SUCCESS)
    result =
        cublasLtMatmulAlgoGetHeuristic(library_, as.operation(), as.w(), as.x(), as.y(), as.y(),
                                       preference, most_candidates, candidates.data(), &found);
  cublasLtMatmulPreferenceDestroy(preference);
  check_blas(result, "cublasLtMatmulAlgoGetHeuristic");

  const graph_timer timer;
  double best = std::numeric_limits<double>::infinity();
  for (int c = 0; c < found; ++c) {
    const cublasLtMatmulAlgo_t& how = candidates[static_cast<std::size_t>(c)].algo;
    if (submit(work, as, how, nullptr) != CUBLAS_STATUS_SUCCESS) continue;
    support::check_cuda(cudaStreamSynchronize(nullptr), "a matrix product");
    const own_graph graph([&](cudaStream_t stream) {
      for (int i = 0; i < products_of_graph; ++i)
        check_blas(submit(work, as, how, stream), "cublasLtMatmul");
    });
    graph.launch();  // to warm up
    for (int i = 0; i < timed_runs; ++i) {
      const double time = timer.time(graph);
      if (time >= best) continue;
      best = time;
      chosen_[key_of(work)] = how;
    }
  }
  if (chosen_.count(key_of(work)) == 0)
    throw std::runtime_error("cuBLASLt has no algorithm for a product of " +
                             std::to_string(work.rows) + " x " + std::to_string(work.inputs) +
                             " by " + std::to_string(work.inputs) + " x " +
                             std::to_string(work.outputs));
}

void matrix_products::run(const product& work, cudaStream_t stream) {
  if (work.rows == 0) return;
  const description as(work, type_);
  check_blas(submit(work, as, chosen_.at(key_of(work)), stream), "cublasLtMatmul");
}

}  // namespace winnow::swin
