package attest_test

import (
	"go/build"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// What the package may import. A verifier that could reach a network, a file or
// a source of keys would be a different thing to trust.
var allowedImports = []string{
	"bytes", "embed", "encoding/hex", "encoding/json", "encoding/pem", "errors", "fmt", "io", "math", "regexp", "slices", "strings", "time",
	"crypto/ecdsa", "crypto/elliptic", "crypto/sha256", "crypto/sha512", "crypto/subtle", "crypto/x509",
	"github.com/fxamacker/cbor/v2", "github.com/veraison/go-cose",
}

var _ = Describe("The package", func() {
	It("imports nothing that does I/O", func() {
		pkg, err := build.ImportDir(".", 0)
		Expect(err).NotTo(HaveOccurred())
		Expect(pkg.Imports).NotTo(BeEmpty())
		Expect(allowedImports).To(ContainElements(pkg.Imports))
	})
})
