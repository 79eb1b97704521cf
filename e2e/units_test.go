package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("systemd's units", func() {
	DescribeTable("have command lines that the programs read", func(ctx SpecContext, unit, example string) {
		content, err := os.ReadFile(filepath.Join(root(), "systemd", unit))
		Expect(err).NotTo(HaveOccurred())
		line := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/(.*)$`).FindStringSubmatch(string(content))
		Expect(line).NotTo(BeNil())
		arguments := regexp.MustCompile(`(?m)^#.*` + example + `="([^"…]*)`).FindStringSubmatch(string(content))
		Expect(arguments).NotTo(BeNil(), "the unit says what %s is like", example)
		command := strings.Fields(strings.Replace(line[1], "$"+example, arguments[1], 1))
		if i := slices.Index(command, "--"); i >= 0 { // a supervisor's, or that of what it runs
			if example == "MRGC_SUPERVISOR_ARGS" {
				command = command[:i]
			} else {
				command = command[i+1:]
				command[0] = filepath.Base(command[0])
			}
		}
		read := func(command []string) (string, error) {
			output, err := exec.CommandContext(ctx, filepath.Join(root(), "bin", command[0]), command[1:]...).CombinedOutput()
			return string(output), err
		}
		output, err := read(append(slices.Clone(command), "-h")) // flags are read before help is given
		Expect(err).NotTo(HaveOccurred(), output)
		_, err = read(append(slices.Clone(command), "--no-such-flag", "-h"))
		Expect(err).To(HaveOccurred(), "the check itself can fail")
	},
		Entry(nil, "mrgc-parent.service", "MRGC_PARENT_ARGS"),
		Entry(nil, "mrgc-guard.service", "MRGC_GUARD_ARGS"),
		Entry(nil, "mrgc-engine.service", "MRGC_ENGINE_ARGS"),
		Entry(nil, "mrgc-engine.service", "MRGC_SUPERVISOR_ARGS"),
	)
})
