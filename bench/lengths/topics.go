package main

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
)

// topics are packages of Go's standard library whose comments are long.
var topics = []string{"crypto/tls", "database/sql", "go/types", "math/big", "net/http", "os", "reflect", "runtime", "time"}

const (
	// sectionTokens is how much of a topic is learned from, or asked about, before
	// it is the other's turn: what is written in one place is alike.
	sectionTokens = 2048
	// answersOfTopic is how many are learned, and how many asked about.
	answersOfTopic = 400
)

// readTopics gives the comments of each topic, as tokens.
func readTopics(ctx context.Context) (map[string][]string, error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	all := map[string][]string{}
	for _, topic := range topics {
		folder := filepath.Join(strings.TrimSpace(string(root)), "src", topic)
		paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			file, err := parser.ParseFile(gotoken.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			all[topic] = append(all[topic], commentsOf(file)...)
		}
		if len(all[topic]) < 4*sectionTokens {
			return nil, fmt.Errorf("%s has %d tokens of comments, too few to learn from", folder, len(all[topic]))
		}
	}
	return all, nil
}

// commentsOf leaves out the licence, which every file has.
func commentsOf(file *ast.File) (tokens []string) {
	for _, group := range file.Comments {
		if text := group.Text(); group.End() > file.Package || group == file.Doc {
			tokens = append(tokens, token.FindAllString(text, -1)...)
		}
	}
	return tokens
}

// sizesIn draws answers of so many tokens about each topic, and gives their sizes in
// clear: those to learn from and those to be asked about are of different sections.
func sizesIn(texts map[string][]string, tokens int) (learned, asked sizesOf) {
	random := rand.New(rand.NewPCG(uint64(tokens), 1)) //nolint:gosec // simulated
	sides := [2]sizesOf{{}, {}}
	for _, topic := range topics {
		text := texts[topic]
		for i := range 2 * answersOfTopic {
			side := i % 2
			section := side + 2*random.IntN(len(text)/sectionTokens/2)
			from := section*sectionTokens + random.IntN(sectionTokens-tokens+1)
			sides[side][topic] = append(sides[side][topic], len(piece(text[from:from+tokens])))
		}
	}
	return sides[0], sides[1]
}
