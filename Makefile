# The commands people need. Each is a preset of CMakePresets.json plus the installation of what is missing.
JOBS ?= $(shell nproc)
# Programs of this build: peft-torch where there is a libtorch.
PROGRAMS = peft_cli $(shell grep -qs '^Torch_DIR:PATH=/' build/release/CMakeCache.txt && echo peft_torch)
SOURCES = $(shell git ls-files '*.cpp' '*.h')

.PHONY: build demo wheel packages release-check test golden consumers asan tsan fuzz tidy format bench bench-report docs clean
.DEFAULT_GOAL := build

build: configure-release                ## build/release/peft, and peft-torch, which runs models
	cmake --build --preset release -j $(JOBS) --target $(PROGRAMS)

demo: configure-demo                    ## inspect, convert, verify, convert back: on bundled adapters; builds peft alone
	@echo "Building peft: five minutes with two cores, the first time"
	@cmake --build --preset demo -j $(JOBS) --target peft_cli -- $$([ -t 2 ] || echo --quiet)
	@tools/demo.sh build/demo/peft

test: configure-release                 ## all tests
	cmake --build --preset release -j $(JOBS)
	ctest --preset release -j $(JOBS)

golden: configure-release               ## the golden tests alone; PEFT_GOLDEN names another root
	cmake --build --preset release -j $(JOBS) --target golden_test
	build/release/golden_test

consumers: build                        ## the real llama.cpp, MLX-LM, vLLM and PEFT run what is converted for them (docs/notes/consumers.md)
	tools/install_dependencies.sh build python
	tools/consumers/run.sh --record

asan tsan: %: configure-%               ## all tests with address and undefined, or thread sanitizer
	cmake --build --preset $@ -j $(JOBS)
	ctest --preset $@ -j $(JOBS)

fuzz: FUZZ_SECONDS ?= 60
fuzz:                                   ## every fuzz target for FUZZ_SECONDS
	tools/install_dependencies.sh build fuzz
	cmake --preset fuzz
	cmake --build --preset fuzz -j $(JOBS)
	@for target in build/fuzz/tests/fuzz/fuzz_*; do \
	  if [ -x "$$target" ] && [ -f "$$target" ]; then \
	    echo "== $$target"; mkdir -p "$$target.corpus"; \
	    "$$target" -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/fuzz/ "$$target.corpus" || exit 1; \
	  fi; done

tidy: configure-debug                   ## clang-tidy over src/
	tools/install_dependencies.sh build lint
	git ls-files 'src/*.cpp' ':!src/*_test.cpp' | xargs -P $(JOBS) -n 4 clang-tidy -p build/debug --quiet \
	  --extra-arg=-fno-openmp --extra-arg=-DPEFT_NO_OPENMP

format:                                 ## clang-format, in place
	tools/install_dependencies.sh lint
	@clang-format -i $(SOURCES)

bench: configure-release                ## ratios to memcpy and cp
	cmake --build --preset release -j $(JOBS)
	@for program in build/release/bench/bench_*; do \
	  if [ -x "$$program" ] && [ -f "$$program" ]; then echo "== $$program"; "$$program" || exit 1; fi; done

wheel:                                  ## the Python package for each Python, tested in fresh environments (docs/python.md)
	JOBS=$(JOBS) tools/build_wheel.sh

packages: build                         ## build/packages: .deb and .tar.gz of the program and of the library
	tools/install_dependencies.sh packaging
	cpack --config build/release/CPackConfig.cmake -B build/packages

release-check:                          ## what CI leaves out: every Python, the sdist, sanitizers, packages, the static program
	tools/release_check.sh

bench-report:                           ## docs/benchmarks.md from bench/results (bench/record.py measures)
	bench/report.py

docs: build                             ## the pages of docs/ that are made from the program's tables
	mkdir -p docs/engines
	for page in errors layouts families config_fields engines $$(build/release/peft engines --json | sed -n 's,^      "name": "\(.*\)".*,engines/\1,p'); do build/release/peft docs $$page > docs/$$page.md; done
	build/release/peft docs readme > build/release/readme_tables.md
	sed -i -e '/<!-- tables -->/,/<!-- end of tables -->/{/<!-- tables -->/{p;r build/release/readme_tables.md' -e '};/<!-- end of tables -->/p;d}' README.md

clean:
	rm -rf build

.PHONY: configure-release configure-demo configure-debug configure-asan configure-tsan
configure-release configure-demo configure-debug configure-asan configure-tsan: configure-%:
	@tools/install_dependencies.sh build
	@if [ $* = release ]; then tools/install_torch.sh; tools/install_python_tools.sh; fi
	@mkdir -p build
	@cmake --preset $* >build/$*.configure.log 2>&1 || { cat build/$*.configure.log; exit 1; }
