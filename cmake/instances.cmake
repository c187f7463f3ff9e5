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
  configure_file(${PROJECT_SOURCE_DIR}/cmake/winnow_instances.hpp.in ${folder}/winnow_instances.hpp
                 @ONLY)
  target_include_directories(${target} PRIVATE ${folder})
endfunction()
