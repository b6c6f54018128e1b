package docdb

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// MongoServer says where a MongoDB server is; the first of the fields that is set
// counts, as in Chains. The URL carries a credential and appears in no message.
type MongoServer struct {
	Path string // storage.docdb.mongo-server-url-path, a file
	Dir  string // storage.docdb.mongo-server-url-dir, a folder with a file MONGO_SERVER_URL
	URL  string // storage.docdb.mongo-server-url
	Env  string // the value of MONGO_SERVER_URL
}

// read returns the server's URL as it is now.
func (m MongoServer) read() (string, error) {
	switch {
	case m.Path != "":
		return readURL("storage.docdb.mongo-server-url-path", m.Path)
	case m.Dir != "":
		if info, err := os.Stat(m.Dir); err == nil && !info.IsDir() {
			return "", fmt.Errorf("reading setting storage.docdb.mongo-server-url-dir: %s is no folder", m.Dir)
		}
		return readURL("storage.docdb.mongo-server-url-dir", filepath.Join(m.Dir, "MONGO_SERVER_URL"))
	case m.URL != "":
		return m.URL, nil
	case m.Env != "":
		return m.Env, nil
	}
	return "", errors.New("no MongoDB server is set")
}

func readURL(setting, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading what setting %s names: %w", setting, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", fmt.Errorf("reading what setting %s names: %w", setting, err)
	}
	// Mounted files end with a newline often.
	server := strings.TrimSpace(string(data))
	if server == "" {
		return "", fmt.Errorf("reading what setting %s names: %s is empty; write the URL of the MongoDB server there", setting, path)
	}
	return server, nil
}
