package weights_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/parent/weights"
)

func TestWeights(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "parent/weights")
}

var _ = Describe("A model's files", func() {
	var dir string
	BeforeEach(func() { dir = GinkgoT().TempDir() })

	write := func(name, content string) {
		GinkgoHelper()
		Expect(os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)).To(Succeed())
	}
	line := func(name, content string) string {
		return fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(content)), name)
	}
	open := func(bytesPerSecond int) *weights.Checker {
		GinkgoHelper()
		write("a", "first")
		write("b", strings.Repeat("second", 1<<19)) // 3 MiB
		write("SUMS", line("a", "first")+line(filepath.Join(dir, "b"), strings.Repeat("second", 1<<19)))
		c, err := weights.Open(filepath.Join(dir, "SUMS"), bytesPerSecond)
		Expect(err).NotTo(HaveOccurred())
		return c
	}

	It("pass while they are what they have to be", func(ctx SpecContext) {
		c := open(0)
		for _, hurry := range []bool{false, true, false} {
			seen, err := c.Verify(ctx, hurry)
			Expect(err).NotTo(HaveOccurred())
			read := "3 MiB"
			if hurry {
				read = "2 of them unchanged since they were read; 0 MiB"
			}
			Expect(seen).To(And(HavePrefix("2 files"), ContainSubstring(read)))
			Expect(c.Look()).To(Succeed())
		}
	})

	DescribeTable("do not pass, and a look at them says so", func(ctx SpecContext, change func()) {
		c := open(0)
		Expect(c.Look()).To(Succeed(), "though none has been read")
		_, err := c.Verify(ctx, false)
		Expect(err).NotTo(HaveOccurred())
		change()
		Expect(c.Look()).To(MatchError(ContainSubstring(dir)))
		for _, hurry := range []bool{true, false, true} {
			_, err = c.Verify(ctx, hurry)
			Expect(err).To(MatchError(ContainSubstring("model: ")))
		}
	},
		Entry("when one is another", func() { write("a", "other") }),
		Entry("when one is another of the same age", func() {
			info, err := os.Stat(filepath.Join(dir, "a"))
			Expect(err).NotTo(HaveOccurred())
			write("a", "firsT")
			Expect(os.Chtimes(filepath.Join(dir, "a"), info.ModTime(), info.ModTime())).To(Succeed())
		}),
		Entry("when another is put in the place of one", func() {
			write("new", "firsT")
			Expect(os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "a"))).To(Succeed())
		}),
		Entry("when one is gone", func() { Expect(os.Remove(filepath.Join(dir, "b"))).To(Succeed()) }),
		Entry("when one is cut", func() { Expect(os.Truncate(filepath.Join(dir, "b"), 1)).To(Succeed()) }),
	)

	It("are read no faster than they may be", func(ctx SpecContext) {
		c := open(6 << 20)
		Expect(c.Takes()).To(BeNumerically("~", 500*time.Millisecond, time.Millisecond))
		began := time.Now()
		_, err := c.Verify(ctx, false)
		Expect(err).NotTo(HaveOccurred())
		Expect(time.Since(began)).To(BeNumerically(">", 400*time.Millisecond), "3 MiB at 6 MiB a second")
	})

	It("are not read on when nobody waits", func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := open(1).Verify(ctx, false)
		Expect(err).To(MatchError(context.Canceled))
	})

	DescribeTable("are not listed like this", func(content, because string) {
		write("SUMS", content)
		_, err := weights.Open(filepath.Join(dir, "SUMS"), 0)
		Expect(err).To(MatchError(ContainSubstring(because)))
	},
		Entry("not at all", "", "no file is in it"),
		Entry("without a path", strings.Repeat("0", 64)+"\n", "line 1"),
		Entry("with an empty one", strings.Repeat("0", 64)+"  \n", "line 1"),
		Entry("with a short sum", strings.Repeat("0", 62)+"  a\n", "line 1"),
		Entry("with none", strings.Repeat("x", 64)+"  a\n", "line 1"),
		Entry("twice", strings.Repeat("0", 64)+"  a\n"+strings.Repeat("1", 64)+"  a\n", "line 2: a a second time"),
		Entry("escaped", `\`+strings.Repeat("0", 64)+`  a\\b`+"\n", "line 1"),
		Entry("with one space", strings.Repeat("0", 64)+" a\n", "line 1"),
	)
})

func FuzzOpen(f *testing.F) {
	f.Add([]byte(strings.Repeat("0", 64) + "  a\n"))
	f.Add([]byte(strings.Repeat("0", 64) + " *a b\n\n"))
	path := filepath.Join(f.TempDir(), "SUMS")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := weights.Open(path, 0)
		if err != nil {
			return
		}
		if seen, err := c.Verify(t.Context(), false); err == nil && !strings.Contains(string(content), "e3b0c442") {
			t.Errorf("passes, and no file is there: %s", seen)
		}
	})
}
