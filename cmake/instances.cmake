# SPDX-License-Identifier: Apache-2.0
# Writes the explicit instantiations of the attention kernels into the build tree, one small file for
# each (storage type, head dim, position encoding), so that they compile side by side. The lists
# are in kernels.cmake; kernels exist for head dims 16, 32, 64 and 128 and the others run padded.
set(winnow_kernel_dims "")
foreach(head_dim IN LISTS WINNOW_HEAD_DIMS)
  foreach(kernel_dim IN ITEMS 16 32 64 128)
    if(head_dim LESS_EQUAL kernel_dim)
      list(APPEND winnow_kernel_dims ${kernel_dim})
      break()
    endif()
  endforeach()
endforeach()
list(REMOVE_DUPLICATES winnow_kernel_dims)

# Where kernels are compiled for compute capability 9.0, it has some of its own beside them. These use
# instructions of the target sm_90a, which no other GPU has, so they are compiled for it alone.
set(winnow_hopper 0)
set(architectures ${CMAKE_CUDA_ARCHITECTURES})
if("native" IN_LIST architectures)
  list(APPEND architectures ${CMAKE_CUDA_ARCHITECTURES_NATIVE})
endif()
foreach(architecture IN LISTS architectures)
  if(architecture MATCHES "^(90a?(-real)?|all|all-major)$")
    set(winnow_hopper 1)
  endif()
endforeach()

# winnow_add_instances(TARGET)
function(winnow_add_instances target)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/instances)
  set(entries "")
  foreach(type IN LISTS WINNOW_DTYPES)
    foreach(dim IN LISTS winnow_kernel_dims)
      string(APPEND entries " \\\n  X(${type}, ${dim})")
      foreach(position IN ITEMS none contextual bias)
        foreach(direction IN ITEMS forward backward)
          set(file ${folder}/attention_${direction}_${type}_${dim}_${position}.cu)
          configure_file(${PROJECT_SOURCE_DIR}/cmake/attention_${direction}_instance.cu.in ${file}
                         @ONLY)
          target_sources(${target} PRIVATE ${file})
        endforeach()
      endforeach()
    endforeach()
    # What tiles have no room for is one kernel for all head dims and encodings.
    set(file ${folder}/attention_backward_${type}_rows.cu)
    configure_file(${PROJECT_SOURCE_DIR}/cmake/attention_backward_rows_instance.cu.in ${file} @ONLY)
    target_sources(${target} PRIVATE ${file})
  endforeach()
  if(winnow_hopper)
    set(hopper_sources "")
    foreach(type IN LISTS WINNOW_DTYPES)
      foreach(dim IN LISTS winnow_kernel_dims)
        if(NOT type STREQUAL "float" AND dim LESS_EQUAL 64) # as takes_wgmma says
          set(file ${folder}/attention_forward_${type}_${dim}_wgmma.cu)
          configure_file(${PROJECT_SOURCE_DIR}/cmake/attention_forward_wgmma_instance.cu.in ${file}
                         @ONLY)
          list(APPEND hopper_sources ${file})
        endif()
        if(NOT type STREQUAL "float" AND dim EQUAL 16) # as takes_contextual_ring says
          set(file ${folder}/attention_forward_${type}_ring.cu)
          configure_file(${PROJECT_SOURCE_DIR}/cmake/attention_forward_ring_instance.cu.in ${file}
                         @ONLY)
          list(APPEND hopper_sources ${file})
        endif()
        if(NOT type STREQUAL "float" AND (dim EQUAL 32 OR dim EQUAL 64)) # as takes_wgmma_backward says
          set(file ${folder}/attention_backward_${type}_${dim}_wgmma.cu)
          configure_file(${PROJECT_SOURCE_DIR}/cmake/attention_backward_wgmma_instance.cu.in ${file}
                         @ONLY)
          list(APPEND hopper_sources ${file})
        endif()
      endforeach()
    endforeach()
    if(hopper_sources)
      add_library(${target}_hopper OBJECT ${hopper_sources})
      target_link_libraries(${target}_hopper PRIVATE winnow_headers
                                                     $<BUILD_INTERFACE:winnow_warnings>)
      set_target_properties(${target}_hopper PROPERTIES CUDA_ARCHITECTURES 90a-real
                                                        POSITION_INDEPENDENT_CODE ON)
      target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_hopper>)
    endif()
  endif()
  configure_file(${PROJECT_SOURCE_DIR}/cmake/winnow_instances.hpp.in ${folder}/winnow_instances.hpp
                 @ONLY)
  target_include_directories(${target} PRIVATE ${folder})
endfunction()
