package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
)

var _ = Describe("A file that is edited", func() {
	var path string
	BeforeEach(func() {
		path = filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
		Expect(os.WriteFile(path, []byte("0"), 0o640)).To(Succeed())
	})
	content := func() string {
		GinkgoHelper()
		text, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		return string(text)
	}

	It("loses nothing of those who edit it at a time", func() {
		var editors sync.WaitGroup
		for range 8 {
			editors.Go(func() {
				defer GinkgoRecover()
				for range 25 {
					Expect(config.Edit(path, func(text []byte) ([]byte, error) {
						n, err := strconv.Atoi(string(text))
						return []byte(strconv.Itoa(n + 1)), err
					})).To(Succeed())
				}
			})
		}
		editors.Wait()
		Expect(content()).To(Equal("200"))
		Expect(filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))).To(BeEmpty())
		info, err := os.Stat(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(BeEquivalentTo(0o640))
	})

	It("keeps what a person has saved meanwhile", func() {
		err := config.Edit(path, func([]byte) ([]byte, error) {
			Expect(os.WriteFile(path, []byte("a person's"), 0o600)).To(Succeed())
			return []byte("mine"), nil
		})
		Expect(err).To(MatchError(ContainSubstring("changed by somebody else")))
		Expect(content()).To(Equal("a person's"))
		Expect(filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))).To(BeEmpty())
	})

	It("is let alone when there is nothing to change, or it cannot be", func() {
		before, err := os.Stat(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(config.Edit(path, func(text []byte) ([]byte, error) { return text, nil })).To(Succeed())
		refused := errors.New("refused")
		Expect(config.Edit(path, func([]byte) ([]byte, error) { return nil, refused })).To(MatchError(refused))
		after, err := os.Stat(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.SameFile(before, after)).To(BeTrue())
		Expect(config.Edit(filepath.Join(filepath.Dir(path), "none"), func([]byte) ([]byte, error) {
			return []byte(strings.Repeat("x", 3)), nil
		})).To(MatchError(os.ErrNotExist))
	})
})
