// Example asks a cluster one question through package client, without `mrgc
// connect`. With a cluster up:
//
//	source .mrgc/env
//	go run ./client/example "Why is the sky blue?"
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"

	"github.com/mrgc/mrgc/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	question := "Why is the sky blue?"
	if len(os.Args) > 1 {
		question = strings.Join(os.Args[1:], " ")
	}
	if err := ask(ctx, question); err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

func ask(ctx context.Context, question string) error {
	tenant, err := connect()
	if err != nil {
		return err
	}
	// From here on this is what any OpenAI SDK does; one in Go takes the same
	// &http.Client{Transport: tenant}. The host of the URL does not matter.
	body, err := json.Marshal(map[string]any{
		"model": os.Getenv("MRGC_MODEL"), "stream": true,
		"messages": []map[string]string{{"role": "user", "content": question}},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://mrgc/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("OPENAI_API_KEY"))
	resp, err := (&http.Client{Transport: tenant}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	return show(resp.Body)
}

// connect trusts what this tenant's environment names. A cluster on Nitro needs
// no development root, and its endpoints have certificates of a public CA.
func connect() (*client.Client, error) {
	releases, err := os.ReadFile(os.Getenv("MRGC_RELEASES"))
	if err != nil {
		return nil, fmt.Errorf("%w: is a cluster up, and its env file sourced?", err)
	}
	config := client.Config{Endpoints: strings.Split(os.Getenv("MRGC_ENDPOINTS"), ",")}
	if config.Policy.Releases, err = client.ParseReleases(releases); err != nil {
		return nil, err
	}
	if path := os.Getenv("MRGC_CA"); path != "" {
		roots, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(roots)
	}
	if path := os.Getenv("MRGC_DEVELOPMENT_ROOT"); path != "" {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(content)
		if block == nil {
			return nil, fmt.Errorf("%s: no certificate in it", path)
		}
		if config.Policy.DevelopmentRoot, err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, err
		}
	}
	return client.New(config)
}

// show prints the answer as it comes. A stream that ends without "[DONE]" was
// cut, and the client has said so by an error.
func show(events io.Reader) error {
	lines := bufio.NewScanner(events)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			fmt.Println()
			return nil
		}
		var event struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return err
		}
		for _, choice := range event.Choices {
			fmt.Print(choice.Delta.Content)
		}
	}
	return errors.Join(lines.Err(), io.ErrUnexpectedEOF)
}
