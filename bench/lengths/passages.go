package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
)

const (
	passageTokens = 200
	// minPassages is what a page must have, to be learned from and asked about.
	minPassages = 10
)

// passage is a piece of a page, as tokens.
type passage struct {
	page   string
	tokens []string
}

// token is a word, or a piece of one, with the space before it, or a sign.
var token = regexp.MustCompile(`\s*(\p{L}{1,6}|\p{N}{1,3}|[^\p{L}\p{N}\s])`)

// prose leaves out what no answer has: code, tables, links' targets.
var prose = regexp.MustCompile("(?m)^( {4}.*|\\|.*|```.*|#.*)$|\\]\\([^)]*\\)")

func readPassages(pattern string) (all []passage, err error) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		passages := passagesOf(filepath.Base(path), content)
		if len(passages) >= minPassages {
			all = append(all, passages...)
		}
	}
	if pageCount(all) < 2 {
		return nil, errors.New("fewer than two pages are long enough")
	}
	return all, nil
}

// passagesOf cuts a page into passages; what is left over is left out.
func passagesOf(page string, content []byte) (all []passage) {
	tokens := token.FindAllString(string(prose.ReplaceAll(content, nil)), -1)
	for len(tokens) >= passageTokens {
		all = append(all, passage{page, tokens[:passageTokens]})
		tokens = tokens[passageTokens:]
	}
	return all
}

func pageCount(passages []passage) int {
	pages := map[string]bool{}
	for _, p := range passages {
		pages[p.page] = true
	}
	return len(pages)
}
