package seal_test

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// The package is part of the measured enclave binary, and it is pure: every
// import is code that must be trusted, and these would give it a way out.
var _ = Describe("The package's imports", func() {
	It("are the standard library without I/O, and the CBOR codec", func() {
		files, err := filepath.Glob("*.go")
		Expect(err).NotTo(HaveOccurred())
		Expect(files).To(ContainElement("doc.go"))
		banned := []string{"os", "net", "net/http", "log", "log/slog", "math/rand", "math/rand/v2", "syscall", "unsafe", "context"}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			Expect(err).NotTo(HaveOccurred())
			for _, imported := range parsed.Imports {
				path, err := strconv.Unquote(imported.Path.Value)
				Expect(err).NotTo(HaveOccurred())
				if path == "github.com/fxamacker/cbor/v2" {
					continue
				}
				Expect(path).NotTo(ContainSubstring("."), "%s imports a third party's %s", file, path)
				Expect(slices.Contains(banned, path)).To(BeFalse(), "%s imports %s", file, path)
			}
		}
	})
})
