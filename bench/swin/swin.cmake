# SPDX-License-Identifier: Apache-2.0
# A Swin backbone as an application of the library. Its host twin and readers build everywhere.
add_library(winnow_swin_host STATIC swin/host_twin.cpp swin/images.cpp swin/prune.cpp
                                    swin/scatter_plot.cpp swin/score_command.cpp swin/weights.cpp)
target_link_libraries(winnow_swin_host PUBLIC winnow_support PRIVATE winnow_warnings)

if(WINNOW_CUDA)
  add_library(winnow_swin STATIC swin/backbone.cpp swin/device_images.cpp
                                 swin/device_weights.cpp swin/fidelity.cpp swin/fidelity.cu
                                 swin/gemm.cpp
                                 swin/latency.cpp swin/embedding.cu swin/fused_mlp.cu
                                 swin/fused_qkv.cu
                                 swin/norms.cu swin/ranking.cu
                                 swin/stage_end.cu)
  target_link_libraries(winnow_swin PUBLIC winnow_swin_host CUDA::cublasLt
                                    PRIVATE winnow_warnings)
endif()

if(WINNOW_CUDA AND WINNOW_BUILD_TOOLS)
  add_executable(winnow-swin swin/latency_command.cpp swin/main.cpp swin/options.cpp
                             swin/search_command.cpp swin/session.cpp)
  add_dependencies(winnow-swin winnow_build_info)
  target_include_directories(winnow-swin PRIVATE ${eval_generated_dir})
  target_link_libraries(winnow-swin PRIVATE winnow_swin winnow_warnings CLI11::CLI11
                                            nlohmann_json::nlohmann_json)
endif()
