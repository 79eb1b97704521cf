package cms_test

import (
	"go/build"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("The package", func() {
	It("imports the standard library only, and nothing that does I/O", func() {
		pkg, err := build.ImportDir(".", 0)
		Expect(err).NotTo(HaveOccurred())
		Expect(pkg.Imports).NotTo(BeEmpty())
		for _, path := range pkg.Imports {
			Expect(strings.HasPrefix(path, "crypto") || path == "bytes" || path == "errors" || path == "fmt").To(BeTrue(), path)
		}
	})
})
