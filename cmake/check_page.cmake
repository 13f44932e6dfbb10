# cmake -DPROGRAM=peft -DPAGE=errors -DFILE=docs/errors.md -P check_page.cmake: fails when the page is stale.
execute_process(COMMAND ${PROGRAM} docs ${PAGE} OUTPUT_FILE ${PAGE}.fresh.md RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "peft docs ${PAGE} failed: ${result}")
endif()
execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${PAGE}.fresh.md ${FILE} RESULT_VARIABLE different)
if(different)
  message(FATAL_ERROR "${FILE} is not what the program says; run `make docs`")
endif()
