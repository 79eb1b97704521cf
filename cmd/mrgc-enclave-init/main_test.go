//go:build linux

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestMRGCEnclaveInit(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "cmd/mrgc-enclave-init")
}

// What it does as process 1 is tested where it is that: e2e/nitro.
var _ = Describe("The enclave's first process", func() {
	It("is made of the standard library and system calls: all of it is measured", func() {
		list := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
		list.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
		list.Stderr = GinkgoWriter
		out, err := list.Output()
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Fields(string(out))).To(ConsistOf("golang.org/x/sys/unix", "github.com/mrgc/mrgc/cmd/mrgc-enclave-init"))
	})

	It("takes arguments line by line", func() {
		Expect(parseArguments([]byte("-model\na b\n"))).To(Equal([]string{"-model", "a b"}))
	})

	DescribeTable("takes no arguments that are", func(content, reason string) {
		_, err := parseArguments([]byte(content))
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("missing", "", "no end"),
		Entry("cut off", "-model\nx", "no end"),
		Entry("empty", "-model\n\nx\n", "line 2"),
	)
})
