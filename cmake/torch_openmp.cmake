# The OpenMP runtime that libtorch loads, wherever it lies and whatever it is called (libgomp.so.1 in torch/lib, libgomp-<hash>.so.1, the
# system's). Our loops run on that one: a second runtime in the process would be a second pool of threads.
if(CMAKE_SCRIPT_MODE_FILE)  # outside a project, where file() warns about this
  file(GET_RUNTIME_DEPENDENCIES LIBRARIES ${LIBRARY} RESOLVED_DEPENDENCIES_VAR found UNRESOLVED_DEPENDENCIES_VAR missing
    CONFLICTING_DEPENDENCIES_PREFIX conflicts)
  list(FILTER found INCLUDE REGEX "/lib(g|i)?omp[^/]*$")
  execute_process(COMMAND ${CMAKE_COMMAND} -E echo_append "${found}")
  return()
endif()

set(PEFT_TORCH_OPENMP_SCRIPT ${CMAKE_CURRENT_LIST_FILE})
function(peft_torch_openmp result)  # its path; empty where torch has none
  set(${result} "" PARENT_SCOPE)
  if(NOT TARGET torch_cpu)
    return()
  endif()
  get_target_property(library torch_cpu LOCATION)
  execute_process(COMMAND ${CMAKE_COMMAND} -DLIBRARY=${library} -P ${PEFT_TORCH_OPENMP_SCRIPT}
    OUTPUT_VARIABLE found RESULT_VARIABLE failed)
  if(NOT failed AND found)
    list(GET found 0 first)
    set(${result} ${first} PARENT_SCOPE)
  endif()
endfunction()
