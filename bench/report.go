package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what was measured, and where.
type report struct {
	Date    string   `json:"date"`
	Machine string   `json:"machine"`
	CPUs    int      `json:"cpus"`
	Kernel  string   `json:"kernel"`
	Go      string   `json:"go"`
	Rounds  int      `json:"rounds"`
	Load    []string `json:"load"` // averages over one minute, at the start and at the end
	Rows    []row    `json:"rows"`
	Notes   []string `json:"notes"`
}

// row is one number of ours and, where there is one, the number to hold it to.
type row struct {
	Section string  `json:"section"`
	Name    string  `json:"name"`
	Ours    float64 `json:"ours"`
	Unit    unit    `json:"unit"`
	Against string  `json:"against,omitempty"`
	Theirs  float64 `json:"theirs,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"` // ours to theirs
	Target  string  `json:"target,omitempty"`
}

type unit string

const (
	seconds   unit = "s"
	bytesUnit unit = "B"
	speed     unit = "B/s"
	count     unit = ""
)

// format writes a value in a size that people read.
func (u unit) format(v float64) string {
	switch u {
	case seconds:
		switch {
		case v < 1e-3:
			return fmt.Sprintf("%.0f µs", v*1e6)
		case v < 1:
			return fmt.Sprintf("%.1f ms", v*1e3)
		}
		return fmt.Sprintf("%.2f s", v)
	case bytesUnit:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case speed:
		return fmt.Sprintf("%.0f MB/s", v/1e6)
	}
	return fmt.Sprintf("%.0f", v)
}

func newReport(rounds int) report {
	return report{
		Date: time.Now().UTC().Format(time.DateOnly), Machine: processor(), CPUs: runtime.NumCPU(),
		Kernel: oneLine("/proc/sys/kernel/osrelease"), Go: runtime.Version(), Rounds: rounds, Load: []string{load()},
		Rows: []row{}, Notes: []string{},
	}
}

func (r *report) finish() { r.Load = append(r.Load, load()) }

func (r *report) json(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

func (r *report) text(w io.Writer) error {
	fmt.Fprintf(w, "%s, %s, %d CPUs, Linux %s, %s; median of %d rounds; load %s\n\n",
		r.Date, r.Machine, r.CPUs, r.Kernel, r.Go, r.Rounds, strings.Join(r.Load, " to "))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "what\tours\tagainst\ttheirs\tratio\ttarget")
	last := ""
	for _, m := range r.Rows {
		if last != "" && m.Section != last {
			fmt.Fprintln(t, "\t\t\t\t\t")
		}
		last = m.Section
		theirs, ratio := "", ""
		if m.Against != "" {
			theirs, ratio = m.Unit.format(m.Theirs), fmt.Sprintf("%.2f", m.Ratio)
			if m.Ratio < 0.01 {
				ratio = fmt.Sprintf("%.4f", m.Ratio)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, m.Unit.format(m.Ours), m.Against, theirs, ratio, m.Target)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		if _, err := fmt.Fprintf(w, "\nnote: %s\n", n); err != nil {
			return err
		}
	}
	return nil
}

func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

func oneLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

func load() string {
	first, _, _ := strings.Cut(oneLine("/proc/loadavg"), " ")
	return first
}
