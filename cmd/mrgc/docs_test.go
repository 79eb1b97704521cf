package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/spf13/cobra"
)

// The pages are read as a person does who types what they say.
const checkout = "../.."

// page is a Markdown file of the checkout.
type page struct {
	path string // in the checkout
	text string
}

func pages() (all []page) {
	GinkgoHelper()
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(filepath.Join(checkout, pattern))
		Expect(err).NotTo(HaveOccurred())
		for _, path := range paths {
			text, err := os.ReadFile(path)
			Expect(err).NotTo(HaveOccurred())
			name, err := filepath.Rel(checkout, path)
			Expect(err).NotTo(HaveOccurred())
			all = append(all, page{name, string(text)})
		}
	}
	Expect(len(all)).To(BeNumerically(">", 10))
	return all
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	span     = regexp.MustCompile("`([^`\n]+)`")
	indented = regexp.MustCompile(`(?m)^ {4,}(\S.*)$`)
	fenced   = regexp.MustCompile("(?s)```.*?\n(.*?)```")
)

// anchors are what a page's headings can be linked by, as GitHub makes them.
func (p page) anchors() (all []string) {
	for _, h := range heading.FindAllStringSubmatch(p.text, -1) {
		name := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(h[1]), "`", ""))
		name = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(name, "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

// code is every piece of the page that is set as code, line by line.
func (p page) code() (all []string) {
	for _, block := range fenced.FindAllStringSubmatch(p.text, -1) {
		all = append(all, strings.Split(block[1], "\n")...)
	}
	for _, found := range [][][]string{indented.FindAllStringSubmatch(p.text, -1), span.FindAllStringSubmatch(p.text, -1)} {
		for _, code := range found {
			all = append(all, code[1])
		}
	}
	return all
}

var _ = Describe("The pages", func() {
	It("have links that lead somewhere", func() {
		read := map[string]page{}
		for _, p := range pages() {
			read[p.path] = p
		}
		for _, p := range read {
			for _, found := range link.FindAllStringSubmatch(p.text, -1) {
				if strings.Contains(found[1], "://") {
					continue
				}
				target, anchor, _ := strings.Cut(found[1], "#")
				path := p.path
				if target != "" {
					path = filepath.Join(filepath.Dir(p.path), target)
					Expect(filepath.Join(checkout, path)).To(BeAnExistingFile(), "%s links to %s", p.path, found[1])
				}
				if anchor != "" {
					Expect(read[path].anchors()).To(ContainElement(anchor), "%s links to %s", p.path, found[1])
				}
			}
		}
	})

	It("name files and folders that are there", func() {
		top, err := os.ReadDir(checkout)
		Expect(err).NotTo(HaveOccurred())
		var names []string
		for _, entry := range top {
			if entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") && entry.Name() != "bin" {
				names = append(names, regexp.QuoteMeta(entry.Name()))
			}
		}
		inside := regexp.MustCompile(`^(?:` + strings.Join(names, "|") + `)/[A-Za-z0-9_./-]+$`)
		for _, p := range pages() {
			for _, found := range span.FindAllStringSubmatch(p.text, -1) {
				if path := found[1]; inside.MatchString(path) {
					_, err := os.Stat(filepath.Join(checkout, path))
					Expect(err).NotTo(HaveOccurred(), "%s names %s", p.path, path)
				}
			}
		}
	})

	It("name make's targets", func() {
		makefile, err := os.ReadFile(filepath.Join(checkout, "Makefile"))
		Expect(err).NotTo(HaveOccurred())
		target := regexp.MustCompile(`(?:^|\s|;)make ([a-z][a-z0-9-]*)`)
		for _, p := range pages() {
			for _, code := range p.code() {
				for _, found := range target.FindAllStringSubmatch(code, -1) {
					Expect(string(makefile)).To(MatchRegexp(`(?m)^%s:`, regexp.QuoteMeta(found[1])), "%s says make %s", p.path, found[1])
				}
			}
		}
	})

	It("say commands of mrgc that exist, with flags that they have", func() {
		called := regexp.MustCompile(`(?:^|[\s/;(])mrgc ([a-z][^;|#&]*)`)
		label := regexp.MustCompile(`^"?mrgc [a-z ]+ v1"?$`) // of the protocol's, for a hash
		said := 0
		for _, p := range pages() {
			for _, code := range p.code() {
				if label.MatchString(code) {
					continue
				}
				for _, found := range called.FindAllStringSubmatch(code, -1) {
					said++
					Expect(saidRightly(found[1])).To(Succeed(), "%s: %s", p.path, code)
				}
			}
		}
		Expect(said).To(BeNumerically(">", 50))
	})

	It("say flags that the instance's programs have", func() {
		called := regexp.MustCompile(`(?:^|[\s/;(])(mrgc-parent|mrgc-enclave) ([^;|#&]*)`)
		flag := regexp.MustCompile(`(?:^|\s)--?([a-z][a-z-]*)`)
		for _, p := range pages() {
			for _, code := range p.code() {
				for _, found := range called.FindAllStringSubmatch(code, -1) {
					source := sourceOf(found[1])
					for _, f := range flag.FindAllStringSubmatch(found[2], -1) {
						Expect(source).To(ContainSubstring(`"`+f[1]+`"`), "%s: %s", p.path, code)
					}
				}
			}
		}
	})
})

// sourceOf is a program's, where its flags are named.
func sourceOf(program string) (source string) {
	GinkgoHelper()
	paths, err := filepath.Glob(filepath.Join("..", program, "*.go"))
	Expect(err).NotTo(HaveOccurred())
	Expect(paths).NotTo(BeEmpty())
	for _, path := range paths {
		text, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		source += string(text)
	}
	return source
}

// saidRightly says whether a command line that begins after "mrgc" is one: its words
// name a command, as far as they are not what that takes, and its flags are that one's.
func saidRightly(line string) error {
	words := strings.Fields(line)
	command, rest := rootCommand(), words
	for len(rest) > 0 {
		i := slices.IndexFunc(command.Commands(), func(c *cobra.Command) bool { return c.Name() == strings.Trim(rest[0], ",.:") })
		if i < 0 {
			break
		}
		command, rest = command.Commands()[i], rest[1:]
	}
	if !command.HasParent() && words[0] != "completion" {
		return fmt.Errorf("mrgc has no command %q", words[0])
	}
	if command.HasSubCommands() && len(rest) > 0 && regexp.MustCompile(`^[a-z]+$`).MatchString(rest[0]) && command.HasParent() {
		return fmt.Errorf("%s has no command %q", command.CommandPath(), rest[0])
	}
	for _, word := range rest {
		if word == "--" { // what follows is another program's
			break
		}
		name, isFlag := strings.CutPrefix(strings.Trim(word, "[]().,\"'"), "--")
		name, _, _ = strings.Cut(name, "=")
		if isFlag && name != "help" && command.Flag(name) == nil {
			return fmt.Errorf("%s has no flag --%s", command.CommandPath(), name)
		}
	}
	return nil
}
