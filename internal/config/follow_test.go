package config_test

import (
	"context"
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/config"
)

var _ = Describe("A file that is followed", func() {
	var (
		path  string
		taken chan string // the first version of the first model
		wrong chan error
	)
	versioned := func(weights string) string { return minimal[:len(minimal)-2] + ", versions: [" + weights + "]}\n" }
	write := func(text string) {
		GinkgoHelper()
		draft := filepath.Join(filepath.Dir(path), "draft")
		Expect(os.WriteFile(draft, []byte(text), 0o600)).To(Succeed())
		Expect(os.Rename(draft, path)).To(Succeed())
	}
	BeforeEach(func() {
		DeferCleanup(func(before []gleak.Goroutine) { Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before)) }, gleak.Goroutines())
		path, taken, wrong = filepath.Join(GinkgoT().TempDir(), "mrgc.yaml"), make(chan string, 10), make(chan error, 10)
		write(versioned("{name: a, weight: 1000}"))
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			config.Follow(ctx, path, func(cfg *config.Config, err error) {
				if err != nil {
					wrong <- err
					return
				}
				taken <- cfg.Models[0].Versions[0].Name
			})
		}()
		DeferCleanup(func() { cancel(); Eventually(ended).Should(BeClosed()) })
		Eventually(taken).Should(Receive(Equal("a")))
	})

	It("is taken once for each content", func() {
		write(versioned("{name: b, weight: 1000}"))
		Eventually(taken).WithTimeout(25 * config.FollowInterval).Should(Receive(Equal("b")))
		Consistently(taken, 3*config.FollowInterval).ShouldNot(Receive())
	})

	It("is said to be faulty once, and nothing while it is gone", func() {
		write("models: []\n")
		Eventually(wrong).WithTimeout(25 * config.FollowInterval).Should(Receive(MatchError(ContainSubstring("want at least one model"))))
		Consistently(wrong, 3*config.FollowInterval).ShouldNot(Receive())
		Expect(os.Remove(path)).To(Succeed())
		Consistently(taken, 3*config.FollowInterval).ShouldNot(Receive())
		write(versioned("{name: c, weight: 1000}"))
		Eventually(taken).WithTimeout(25 * config.FollowInterval).Should(Receive(Equal("c")))
	})
})
